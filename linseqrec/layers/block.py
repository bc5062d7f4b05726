"""The blocks that stacks are made of: pre-norm, and post-norm for models released with it."""

from typing import Any

from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from linseqrec.layers.standard import drop_path, dropout, split_key


class Block(nnx.Module):
    """Two residual halves, each normed before: a mixer over time, then a feed-forward half.

        H = H + Drop(Mixer(N(H)))
        H = H + Drop(FeedForward(N(H)))

    The parts stand at NAME and NAME_norm, with NAME the mixer's, and at `feed_forward` and
    `feed_forward_norm`.
    """

    def __init__(
        self,
        norm: Any,
        mixer: Any,
        feed_forward_norm: Any,
        feed_forward: Any,
        *,
        rate: float,
        path_rate: float | None = None,
        name: str = "mixer",
    ):
        """Takes the parts, in the order in which events go through them.

        Args:
          norm: The norm of the mixer's half.
          mixer: Called as `mixer(x, *mixer_inputs, state)`. It returns its outputs and its state.
          feed_forward_norm: The norm of the feed-forward half.
          feed_forward: Called as `feed_forward(x, dropout_key=key)`.
          rate: Of dropout on each half's output.
          path_rate: Rate at which a segment skips the mixer, in place of dropout on its output.
          name: What the mixer is called.
        """
        self.name, self.rate = name, rate
        self.mixer_rate = rate if path_rate is None else path_rate
        self.mixer_drop = _drop_entries if path_rate is None else drop_path
        setattr(self, f"{name}_norm", norm)
        setattr(self, name, mixer)
        self.feed_forward_norm = feed_forward_norm
        self.feed_forward = feed_forward

    def initial_state(self, batch_size: int) -> Any:
        """The mixer's state before any event."""
        return getattr(self, self.name).initial_state(batch_size)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        segment_ids: Int[Array, "B T"],
        mixer_inputs: tuple[Any, ...],
        state: Any,
        *,
        dropout_key: PRNGKeyArray | None,
    ) -> tuple[Float[Array, "B T D"], Any]:
        """Takes a row's events through the block.

        Args:
          x: The residual stream.
          segment_ids: One id from 1 per history; 0 is padding.
          mixer_inputs: Arguments of the mixer between x and the state.
          state: The mixer's past of each row's first segment.
          dropout_key: Randomness of dropout; None is evaluation.

        Returns:
          The block's output, and the mixer's state after each row's last segment.
        """
        mixer_key, *feed_keys = split_key(dropout_key, 3)
        mixer, norm = getattr(self, self.name), getattr(self, f"{self.name}_norm")
        mixed, state = mixer(self.before_half(norm, x), *mixer_inputs, state)
        mixed = self.mixer_drop(mixed, self.mixer_rate, segment_ids, mixer_key)
        return self.feed(self.after_half(norm, x + mixed), *feed_keys), state

    def feed(
        self,
        x: Float[Array, "B T D"],
        hidden_key: PRNGKeyArray | None,
        output_key: PRNGKeyArray | None,
    ) -> Float[Array, "B T D"]:
        """The feed-forward half, with the keys of its dropouts."""
        norm = self.feed_forward_norm
        fed = self.feed_forward(self.before_half(norm, x), dropout_key=hidden_key)
        return self.after_half(norm, x + dropout(fed, self.rate, output_key))

    def before_half(self, norm: nnx.Module, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """What a half reads: here the normed stream."""
        return norm(x)

    def after_half(self, norm: nnx.Module, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """The stream after a half, from its sum with the half's output: here the sum itself."""
        del norm
        return x


class PostNormBlock(Block):
    """Two residual halves, each normed after: a mixer over time, then a feed-forward half.

        H = N(H + Drop(Mixer(H)))
        H = N(H + Drop(FeedForward(H)))

    The parts are named as those of `Block`.
    """

    def before_half(self, norm: nnx.Module, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """What a half reads: the stream itself."""
        del norm
        return x

    def after_half(self, norm: nnx.Module, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """The stream after a half, from its sum with the half's output: the normed sum."""
        return norm(x)


def _drop_entries(
    x: Float[Array, "B T D"],
    rate: float,
    segment_ids: Int[Array, "B T"],
    key: PRNGKeyArray | None,
) -> Float[Array, "B T D"]:
    """`dropout` with the arguments of `drop_path`."""
    del segment_ids
    return dropout(x, rate, key)
