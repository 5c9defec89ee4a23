"""CamemBERT, RoBERTa in French."""

from paddock.models.roberta import (
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
    RobertaModel,
)


class CamembertModel(RobertaModel):
    pass


class CamembertForMaskedLM(RobertaForMaskedLM):
    pass


class CamembertForSequenceClassification(RobertaForSequenceClassification):
    pass


class CamembertForTokenClassification(RobertaForTokenClassification):
    pass
