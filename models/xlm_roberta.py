"""XLM-RoBERTa, RoBERTa in a hundred languages: multilingual E5, BGE-M3, rerankers."""

from paddock.models.roberta import (
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
    RobertaModel,
)


class XLMRobertaModel(RobertaModel):
    pass


class XLMRobertaForMaskedLM(RobertaForMaskedLM):
    pass


class XLMRobertaForSequenceClassification(RobertaForSequenceClassification):
    pass


class XLMRobertaForTokenClassification(RobertaForTokenClassification):
    pass
