"""All the families that are drawn, by architecture: each module of draws adds its own."""

from tests.models import expert_draws, state_draws
from tests.models.decoder_draws import FAMILIES

__all__ = ["FAMILIES", "expert_draws", "state_draws"]
