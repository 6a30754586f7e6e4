"""What `inspect` found, as text for people."""

from collections.abc import Iterable, Iterator

from calm_megatron.checkpoint.inspect import Comparison, Facts, Inspection

_SHOWN = 20
"""Weights listed; a run that went on differs in all of them."""


def describe(found: Inspection) -> str:
    """An inspected checkpoint."""
    return "\n".join(_lines(found))


def describe_comparison(found: Comparison) -> str:
    """Two checkpoints beside each other."""
    lines = [f"state: {'equal to the last bit' if found.equal else 'different'}"]
    if found.weights:
        worst = sorted(found.weights, key=lambda each: (each.largest is None, each.largest), reverse=True)
        rows = [
            (
                f"{each.kind}/{each.name}",
                f"{each.elements:,} of {each.total:,}",
                "not finite" if each.largest is None else f"{each.largest:.3g}",
            )
            for each in worst
        ]
        lines += ["", *_table(("weights and moments that differ", "elements", "at most"), rows[:_SHOWN])]
        if len(rows) > _SHOWN:
            lines.append(f"  and {len(rows) - _SHOWN:,} more with smaller differences")
    for name in ("shapes", "progress", "engine", "fingerprints", "layout", "settings"):
        pairs: Facts = getattr(found, name)
        rows = [(key, _value(first), _value(second)) for key, (first, second) in pairs.items()]
        lines += ["", *_table((name, "first", "second"), rows)] if rows else []
    return "\n".join(lines)


def _lines(found: Inspection) -> Iterator[str]:
    yield f"{found.path}: {'whole' if found.whole else 'DAMAGED'}"
    if not found.files:
        yield from (f"  {problem}" for problem in found.problems)
        return
    yield ""
    yield from _facts({name: value for name, value in found.progress.items() if not isinstance(value, (list, tuple))})
    if found.weights:
        yield from _facts({"parameters": found.parameters, "weights": len(found.weights)})
    yield from _facts({**found.layout, **found.engine})
    yield from _facts({f"{name} fingerprint": value for name, value in found.fingerprints.items()})
    yield ""
    rows = [
        (file.name, f"{file.bytes:,}", f"DAMAGED: {file.problem}" if file.problem else "ok") for file in found.files
    ]
    total = sum(file.bytes for file in found.files)
    yield from _table(("file", "bytes", "checksum"), [*rows, ("all", f"{total:,}", "")])
    if found.chosen:
        yield ""
        yield "settings that are not the defaults"
        yield from (f"  {name:<36} {_value(found.settings[name])}" for name in found.chosen)


def _facts(facts: Facts) -> Iterator[str]:
    yield from (f"  {name.replace('_', ' '):<36} {_value(value)}" for name, value in facts.items())


def _table(head: tuple[str, str, str], rows: Iterable[tuple[str, str, str]]) -> list[str]:
    """Columns as wide as what stands in them."""
    lines = [head, *rows]
    first, second = (max(len(line[column]) for line in lines) for column in (0, 1))
    return [f"  {line[0]:<{first}}  {line[1]:>{second}}  {line[2]}".rstrip() for line in lines]


def _value(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
