"""What the demo is held to, and whether this run got there."""

from collections.abc import Mapping
from typing import NamedTuple

from pocketlens.demo.report_content import TargetCheck

__all__ = ["goals"]

Summary = Mapping[str, float | int | str | None]


class _Bar(NamedTuple):
    """Shares of the teacher's figures that a run is to reach, and the time that it may take."""

    retrieval: float
    cider: float
    minutes: float | None


_BARS = {"demo": _Bar(0.80, 0.80, 10.0), "full": _Bar(0.92, 0.90, None), "quick": _Bar(0.0, 0.0, None)}


def goals(summary: Summary) -> tuple[TargetCheck, ...]:
    """Return each goal of the run's mode with the figure of `summary`. A quick run is too short to have learned."""
    bar = _BARS[str(summary["mode"])]
    checks = [
        _at_most(summary, "student_params", 3_000_000, "Student parameters", "{:,.0f}"),
        _at_most(summary, "bundle_bytes_onnx_int8", 4_000_000, "Bytes of the int8 ONNX bundle", "{:,.0f}"),
    ]
    if bar.retrieval:
        checks += [
            _share(summary, "r1_i2t", bar.retrieval, "R@1 image → text, student over teacher"),
            _share(summary, "r1_t2i", bar.retrieval, "R@1 text → image, student over teacher"),
            _share(summary, "cider", bar.cider, "CIDEr, student over teacher"),
            _hallucination(summary),
        ]
    checks += [
        _points_lost(summary, "r1_i2t", "R@1 image → text lost by int8"),
        _points_lost(summary, "r1_t2i", "R@1 text → image lost by int8"),
        _at_least(summary, "int8_speedup_image", 1.3, "int8 image encoder, speed over fp32", "{:.2f} ×"),
        _at_least(summary, "caption_token_identity_onnx", 1.0, "Captions identical, ONNX fp32 and eager", "{:.1%}"),
        _at_least(
            summary, "caption_token_identity_executorch", 1.0, "Captions identical, ExecuTorch fp32 and eager", "{:.1%}"
        ),
    ]
    if bar.minutes is not None and summary["resumed"]:
        checks.append(
            TargetCheck("Time of this run", f"at most {bar.minutes:.0f} min", "not known: it was resumed", False)
        )
    elif bar.minutes is not None:
        checks.append(_at_most(summary, "seconds_total", bar.minutes * 60, "Time of this run, seconds", "{:.0f}"))
    return tuple(checks)


def _value(summary: Summary, key: str) -> float | None:
    value = summary.get(key)
    return float(value) if isinstance(value, (int, float)) else None


def _at_most(summary: Summary, key: str, limit: float, name: str, form: str) -> TargetCheck:
    value = _value(summary, key)
    got = "not measured" if value is None else form.format(value)
    return TargetCheck(name, f"at most {form.format(limit)}", got, value is not None and value <= limit)


def _at_least(summary: Summary, key: str, limit: float, name: str, form: str) -> TargetCheck:
    value = _value(summary, key)
    got = "not measured" if value is None else form.format(value)
    return TargetCheck(name, f"at least {form.format(limit)}", got, value is not None and value >= limit)


def _share(summary: Summary, metric: str, share: float, name: str) -> TargetCheck:
    teacher, student = _value(summary, f"teacher_{metric}"), _value(summary, f"student_{metric}")
    ratio = student / teacher if teacher and student is not None else None
    got = "not measured" if ratio is None else f"{ratio:.1%}"
    return TargetCheck(name, f"at least {share:.0%}", got, ratio is not None and ratio >= share)


def _hallucination(summary: Summary) -> TargetCheck:
    teacher, student = _value(summary, "teacher_hallucination"), _value(summary, "student_hallucination")
    passed = teacher is not None and student is not None and student <= 1.5 * teacher
    got = "not measured" if teacher is None or student is None else f"{student:.1%} against {teacher:.1%}"
    return TargetCheck("Hallucinated objects, student and teacher", "at most 1.5 × the teacher's", got, passed)


def _points_lost(summary: Summary, metric: str, name: str) -> TargetCheck:
    student, int8 = _value(summary, f"student_{metric}"), _value(summary, f"int8_{metric}")
    if student is None or int8 is None:
        return TargetCheck(name, "at most 1 point", "not measured", False)
    lost = 100 * (student - int8)
    return TargetCheck(name, "at most 1 point", f"{lost:+.1f} points", lost <= 1.0 + 1e-9)
