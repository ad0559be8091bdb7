"""Whether a question is small enough to be asked: looked at before anything is computed."""

from collections.abc import Iterator, Mapping
from typing import Any

from atlasvi.engine.queries.question import GroupsBy, NamesOf, Question, split_names
from atlasvi.engine.queries.question_cells import QueryError, QuestionCells
from atlasvi.engine.service.answer_forms import TooLarge
from atlasvi.engine.service.areas import Area
from atlasvi.engine.service.limits import Limits
from atlasvi.engine.service.option_models import find_marked
from atlasvi.engine.service.patterns import check_pattern
from atlasvi.engine.service.store_facts import count_distinct
from atlasvi.loaders.batches.obs_expression import list_patterns


def check_question(
    question: Question, options: Mapping[str, Any], cells: QuestionCells, n_genes: int, limits: Limits
) -> None:
    """Raise TooLarge, or QueryError, if a question with these options would take too much memory or time.

    n_genes  of the model
    """
    for text in _list_texts(options.values()):
        for pattern, flags in list_patterns(text):
            try:
                check_pattern(pattern, flags)
            except ValueError as error:
                raise QueryError(str(error)) from None
    for name in find_marked(question, NamesOf("genes")):
        wanted = split_names(options[name])
        n_wanted = n_genes if wanted is None else len(wanted)
        if n_wanted > limits.most_genes:
            raise TooLarge(
                f"The question is about {n_wanted:,} genes, and this service answers up to {limits.most_genes:,}: name "
                f"fewer ({name})."
            )
    for name in ("n_samples", "n_samples_overall"):
        n_values = (options.get(name) or 0) * n_genes
        if question.name != "annotate" and n_values > limits.most_values:
            raise TooLarge(
                f"{options[name]:,} draws of {n_genes:,} genes are {n_values:,} values, and this service holds up to "
                f"{limits.most_values:,} at once: ask for fewer draws ({name})."
            )
    for option in find_marked(question, GroupsBy):
        for column in split_names(options[option]) or []:
            _check_groups(question, options, cells, column, n_genes, limits)


def _check_groups(
    question: Question, options: Mapping[str, Any], cells: QuestionCells, column: str, n_genes: int, limits: Limits
) -> None:
    """Raise TooLarge if an obs column has too many values to be groups, ColumnError if there is no such column."""
    n_groups, most = count_distinct(cells, column, limits.most_groups), limits.most_groups
    if n_groups > most:
        raise TooLarge(
            f"The obs column {column!r} has more than {most:,} values, and this service compares up to {most:,} groups."
        )
    if question.name in ("markers", "differential"):  # which answer with rows for each group
        named = split_names(options.get("labels") or options.get("group1"))
        n_rows = min(n_groups, len(named or range(n_groups))) * (options.get("top") or n_genes)
        if n_rows > limits.most_cells:
            raise TooLarge(
                f"The answer would have {n_rows:,} rows, and this service gives up to {limits.most_cells:,}: name "
                "fewer groups, or ask for fewer genes of each (top)."
            )


def _list_texts(values: Any) -> Iterator[str]:
    for value in values:
        if isinstance(value, str):
            yield value
        elif isinstance(value, Area):
            yield from value.where
        elif isinstance(value, list):
            yield from _list_texts(value)
