"""Quality figures of a bundle against its checkpoint: the manifest's `quality`.

Unknown figures, from a newer version, are kept; a figure that was not measured is absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from edgekit.errors import BundleError

__all__ = ["Figures", "Quality"]


@dataclass(frozen=True, slots=True)
class Figures:
    """Distance between the next-token distributions of bundle and checkpoint, over the tokens of a text.

    Attributes:
        perplexity: Perplexity of the bundle: `exp` of the mean negative log-probability of the text's next token.
        kl_mean: Mean Kullback-Leibler divergence of the bundle's distribution from the checkpoint's, nats per token.
        kl_p99: Its 99th percentile over tokens.
        top1: Share of tokens where both have the same most likely token.
    """

    perplexity: float
    kl_mean: float
    kl_p99: float
    top1: float


@dataclass(frozen=True, slots=True)
class Quality:
    """One measurement. `weights` is the error of the stored weights alone: both sides are computed in float32.

    Attributes:
        text: File name of the text.
        text_sha256: SHA-256 of the file.
        against: The checkpoint's id.
        against_stored: How the checkpoint stores its matrices: `float`, or the encodings that were dequantized.
        window: Tokens per window; every window is a separate sequence.
        windows: Number of windows.
        tokens: Predicted tokens: all of a window except its first.
        perplexity: Perplexity of the checkpoint.
        weights: The bundle's weights against the checkpoint's.
        runner: The bundle in its runner, with activation rounding; None if not measured.
        layers: Relative error of the hidden states after each layer, `|h' - h| / |h|`, averaged over tokens.
        matrices: Relative error of each weight matrix, `|W' - W| / |W|`, by its Hugging Face name. Layers whose norms
            differ are omitted, because the recipe moved factors from their matrices into the norms.
        calibrated: Whether the bundle was calibrated on this text, which flatters it.
        extra: Unknown figures, from a newer edgekit.
    """

    text: str
    text_sha256: str
    against: str
    against_stored: str
    window: int
    windows: int
    tokens: int
    perplexity: float
    weights: Figures
    runner: Figures | None = None
    layers: tuple[float, ...] = ()
    matrices: Mapping[str, float] = field(default_factory=dict)
    calibrated: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for the manifest."""
        data = asdict(self)
        data.update(data.pop("extra"))
        data["layers"] = list(self.layers)
        if self.runner is None:
            del data["runner"]
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Quality:
        """Read the manifest's `quality`.

        Raises:
            BundleError: A figure is missing or has the wrong type.
        """
        known = {
            "text", "text_sha256", "against", "against_stored", "window", "windows", "tokens", "perplexity", "weights",
            "runner", "layers", "matrices", "calibrated",
        }  # fmt: skip
        try:
            return cls(
                text=str(data["text"]),
                text_sha256=str(data["text_sha256"]),
                against=str(data["against"]),
                against_stored=str(data["against_stored"]),
                window=int(data["window"]),
                windows=int(data["windows"]),
                tokens=int(data["tokens"]),
                perplexity=float(data["perplexity"]),
                weights=_figures(data["weights"]),
                runner=_figures(data["runner"]) if data.get("runner") is not None else None,
                layers=tuple(float(value) for value in data.get("layers", ())),
                matrices={str(name): float(value) for name, value in dict(data.get("matrices", {})).items()},
                calibrated=bool(data.get("calibrated", False)),
                extra={key: value for key, value in data.items() if key not in known},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BundleError(f"the manifest's quality figures are damaged: {error}") from error


def _figures(data: Mapping[str, Any]) -> Figures:
    return Figures(**{name: float(data[name]) for name in ("perplexity", "kl_mean", "kl_p99", "top1")})
