"""A folder that `ollama create` takes: a .gguf file and the Modelfile that says how it is talked to."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import field_validator

from tunesmith.exports.gguf import Gguf

if TYPE_CHECKING:
    from tunesmith.exports.formats.gguf_check import Written
    from tunesmith.exports.formats.gguf_convert import Converted


class Ollama(Gguf):
    """Write a .gguf file, and beside it a Modelfile with template, stop words and sampling as the run has them.

    Then: `ollama create NAME -f OUT/Modelfile`.
    """

    system: str | None = None
    """System message that Ollama puts before a conversation that has none. None: no message, as in training."""

    @field_validator("system")
    @classmethod
    def _quoted(cls, system: str | None) -> str | None:
        if system is not None and '"""' in system:
            raise ValueError('three quotation marks end it in a Modelfile: leave """ out')
        return system

    def fill(self, folder: Path, made: "Written | Converted") -> None:
        """Write the file and the Modelfile."""
        text = self.modelfile(folder, made)
        super().fill(folder, made)
        (folder / "Modelfile").write_text(text, encoding="utf-8")

    def problem(self, folder: Path, made: "Written | Converted") -> str | None:
        """What is wrong beside the file, in words: a Modelfile that is other than the run gives."""
        own, other = self.modelfile(folder, made), (folder / "Modelfile").read_text(encoding="utf-8")
        if own == other:
            return None
        lines = zip(own.splitlines(), other.splitlines(), strict=False)
        at = next((at for at, (left, right) in enumerate(lines, 1) if left != right), None)
        return "its Modelfile is another than the run's" + (f" from line {at} on" if at else " at its end")

    def notes(self, made: "Written | Converted") -> tuple[str, ...]:
        """What is said of the template."""
        from tunesmith.exports.formats import ollama_templates as templates

        if made.tokenizer.chat_template is None:
            return ("no chat template: Ollama gives the model the message alone, as training did",)
        row = templates.found(made.tokenizer)
        tools = "tools too" if row.tools else "no tools"
        return (f"template {row.name}: read as the run's own on {len(templates.PLAIN)} conversations, {tools}",)

    def modelfile(self, folder: Path, made: "Written | Converted") -> str:
        """The Modelfile. Its format: https://github.com/ollama/ollama/blob/main/docs/modelfile.md."""
        from transformers import GenerationConfig

        from tunesmith.exports.formats import ollama_templates as templates

        lines = [f"FROM ./{self.file}"]
        if made.tokenizer.chat_template is not None:
            lines.append(f'TEMPLATE """{templates.found(made.tokenizer).text}"""')
        if self.system is not None:
            lines.append(f'SYSTEM """{self.system}"""')
        config = GenerationConfig.from_pretrained(str(folder))
        ends = made.tokenizer.convert_ids_to_tokens(_ends(config))
        lines += [f'PARAMETER stop "{end}"' for end in ends]
        lines += [f"PARAMETER {name} {value}" for name, value in _sampling(config).items()]
        return "\n".join(lines) + "\n"


def _ends(config: Any) -> list[int]:
    said = config.eos_token_id
    return said if isinstance(said, list) else [] if said is None else [said]


def _sampling(config: Any) -> dict[str, Any]:
    """How answers are drawn, by Ollama's names; the likeliest token each time where the config draws none.

    What the config leaves open is said as what changes nothing: Ollama would take values of its own (api/types.go).
    """
    nothing = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    said = {name: value if getattr(config, name) is None else getattr(config, name) for name, value in nothing.items()}
    said["repeat_penalty"] = said.pop("repetition_penalty")
    return said if config.do_sample else said | {"temperature": 0}
