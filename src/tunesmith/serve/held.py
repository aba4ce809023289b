"""What a request says that its answers must be: JSON, what a regular expression says, or calls of tools."""

from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.errors import RecipeError
from tunesmith.generate.constraint import ANY_OBJECT, Form, Forms, json_rule, regex_rule
from tunesmith.serve.problem import Problem
from tunesmith.serve.requests import Chat, Drawn, NamedTool

Tools = Sequence[Mapping[str, Any]]


def form_of(forms: Forms, body: Drawn, tools: Tools = ()) -> Form | None:
    """The grammar of the answers to a request, in which `tools` may be called; None where they may be anything.

    Raises:
        Problem: there is no such form, or the chat template writes no calls.
        ModelError, MissingExtra: answers of this model, or on this machine, cannot be held to any.
    """
    try:
        if isinstance(body, Chat) and (body.tool_choice == "required" or isinstance(body.tool_choice, NamedTool)):
            return forms.form("tools", _required(forms, body, tools))
        name, rule = _said(body)
        if rule is None:
            return None
        form = forms.form(name, rule, bare=not isinstance(body, Chat))
        calls = forms.calls(tools, isinstance(body, Chat) and body.parallel_tool_calls) if tools else None
        return form if calls is None else forms.form(name, calls, rule)
    except RecipeError as error:
        raise Problem(str(error), param=str(error).partition(":")[0], code="invalid_form") from None


def _said(body: Drawn) -> tuple[str, str | None]:
    """The field that says what an answer must be, and the rule of it."""
    if body.structured_outputs is not None:
        return "structured_outputs", regex_rule(body.structured_outputs.regex)
    how = body.response_format
    if how.type == "text":
        return "response_format", None
    schema = ANY_OBJECT if how.json_schema is None else how.json_schema["schema"]
    return "response_format", json_rule(schema, "response_format")


def _required(forms: Forms, body: Chat, tools: Tools) -> str:
    """The rule of an answer that calls a tool, or the one that is named."""
    named = body.tool_choice.function.name if isinstance(body.tool_choice, NamedTool) else None
    called = [tool for tool in tools if named in (None, tool["function"]["name"])]
    rule = forms.calls(called, named is None and body.parallel_tool_calls)
    if rule is None:
        raise Problem(
            f"tool_choice: a call of {named or 'a tool'} cannot be made sure of: the chat template has no way to write "
            "one that is understood: say auto or none",
            param="tool_choice",
            code="unsupported",
        )
    return rule
