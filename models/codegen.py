"""CodeGen: GPT-J whose projections are stored for the machine that trained it."""

from typing import ClassVar, Self

from pydantic import model_validator

from paddock.models.gptj import GPTJConfig, GPTJForCausalLM


class CodeGenConfig(GPTJConfig):
    @model_validator(mode="after")
    def _has_whole_groups(self) -> Self:
        if self.num_attention_heads % 4:
            raise ValueError(f"num_attention_heads {self.num_attention_heads}: not 4 groups")
        return self


class CodeGenForCausalLM(GPTJForCausalLM):
    Config: ClassVar[type[GPTJConfig]] = CodeGenConfig
    weight_map: ClassVar[str] = "paddock.weights.codegen"
