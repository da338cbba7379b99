"""Text: captions as numbers, and the network that reads them."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from diffusion_course.checks import integer
from diffusion_course.models import doors
from diffusion_course.models.attention import attention, count_heads
from diffusion_course.models.blocks import Block, stack, through
from diffusion_course.models.layers import STANDARD_NORMAL, layer_norm
from diffusion_course.models.patches import sinusoids


@dataclass(frozen=True)
class Tokeniser:
    """Captions as rows of whole numbers, one for each word, all rows of one length.

    A word's number is its place in `words`. The number after the last one, `padding`, fills up
    short captions and counts for nothing: it is the ``null_label`` of a model that is built with
    ``num_classes = len(words)``. A caption without words is the null caption.

    Args:
      words: every word of the language, in an order that must not change once a model is trained.
      length: tokens of a row: the most words that a caption may have; at least 2, since a column
        of numbers would be labels.

    Raises: ValueError for no words, a word twice, one that holds a space or a capital, or a length
      below 2.

    >>> tokeniser = Tokeniser(("a", "large", "red", "ring", "small"), length=5)
    >>> tokeniser(["a large red ring", "a ring", ""]).tolist()
    [[0, 1, 2, 3, 5], [0, 3, 5, 5, 5], [5, 5, 5, 5, 5]]
    >>> tokeniser.captions(tokeniser("a small ring"))
    ['a small ring']
    """

    words: tuple[str, ...]
    length: int

    def __post_init__(self):
        integer("length", self.length, 2)
        if not isinstance(self.words, tuple) or not self.words:
            raise ValueError(f"words must be a tuple of at least one word, got {self.words!r}")
        for i, word in enumerate(self.words):
            if not isinstance(word, str) or [word] != word.lower().split():
                raise ValueError(f"words must be single words in lower case, got {word!r}")
            if word in self.words[:i]:
                raise ValueError(f"words must differ, got {word!r} twice")

    @property
    def padding(self) -> int:
        """The number that fills up short captions."""
        return len(self.words)

    def __call__(self, captions: str | Sequence[str]) -> np.ndarray:
        """Captions as int32 [N, length]; one caption alone is a row of its own, [1, length].

        Raises: ValueError for a word that is none of the language's, or a caption that is too long.
        """
        captions = [captions] if isinstance(captions, str) else captions
        tokens = np.full((len(captions), self.length), self.padding, np.int32)
        for i, caption in enumerate(captions):
            if not isinstance(caption, str):
                raise ValueError(f"captions must be strings, got {caption!r}")
            numbers = [self._number(word) for word in caption.lower().split()]
            if len(numbers) > self.length:
                raise ValueError(
                    f"captions must have at most {self.length} words, got {len(numbers)} in "
                    f"{caption!r}"
                )
            tokens[i, : len(numbers)] = numbers
        return tokens

    def captions(self, tokens: Array) -> list[str]:
        """The captions of rows of tokens [N, L]. Raises: ValueError for a number out of range."""
        tokens = doors.tokens(np.asarray(tokens), len(tokens), self.padding)
        names = (*self.words, "")
        return [" ".join(names[n] for n in row if n != self.padding) for row in tokens.tolist()]

    def mask(self, tokens: Array) -> np.ndarray:
        """Which of the tokens are words, booleans of the same shape."""
        return np.asarray(tokens) != self.padding

    def _number(self, word: str) -> int:
        if word in self.words:
            return self.words.index(word)
        near = difflib.get_close_matches(word, self.words, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"captions must use the {len(self.words)} known words, got {word!r}{hint}")


class TextEncoder(nnx.Module):
    """Self-attention over the words of captions: numbers [B, L] -> tokens [B, 1 + L, width].

    A learned token stands before the first word. It has no word's number, and it always counts:
    its output sums a caption up, and of the null caption, all padding, it is what there is to read.
    So the null caption has a trained representation of its own, and no row is without a token.

    Args:
      num_words: number of words; ``num_words`` itself is the padding.
      width: of a token; a multiple of head_size, and even.
      depth: number of blocks.
      head_size: width of an attention head.
      dtype: of the computation.
      rngs: random number streams of the initialisation.

    Raises: ValueError for sizes that do not fit.
    Source: Vaswani et al. 2017 (arXiv:1706.03762), norms before each part; the first token as in
    Devlin et al. 2019, section 3 (arXiv:1810.04805).

    >>> encoder = TextEncoder(7, width=32, depth=1, rngs=nnx.Rngs(0))
    >>> tokens, mask = encoder(jnp.array([[4, 0, 7], [7, 7, 7]]))  # of two words and of none
    >>> tokens.shape, mask.tolist()
    ((2, 4, 32), [[True, True, True, False], [True, False, False, False]])
    """

    def __init__(
        self,
        num_words: int,
        width: int = 64,
        depth: int = 2,
        *,
        head_size: int = 16,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.padding = integer("num_words", num_words, 1)
        integer("depth", depth, 1)
        doors.divisible("width", width, 2)
        heads = count_heads(width, head_size)
        # Row `num_words` is the first token's. The padding has none: nobody reads it.
        self.words = nnx.Embed(
            num_words + 1, width, embedding_init=STANDARD_NORMAL, dtype=dtype, rngs=rngs
        )

        def block(rngs: nnx.Rngs) -> Block:
            # Nothing but the tokens themselves tells such a block anything.
            return Block(width, heads, conditioning="in-context", dtype=dtype, rngs=rngs)

        self.blocks = stack(block, depth, rngs)

    def __call__(self, captions: Array) -> tuple[Array, Array]:
        """Numbers [B, L] -> tokens [B, 1 + L, width], and which of them count, [B, 1 + L].

        What stands at the place of a padding token is nobody's to read.

        Raises: ValueError for an argument of another shape, dtype or range.
        """
        captions = doors.tokens(captions, len(captions), self.padding)
        first = jnp.full((len(captions), 1), self.padding, captions.dtype)
        h = self.words(jnp.concatenate([first, captions], axis=1))
        h = h + sinusoids(h.shape[1], h.shape[2]).astype(h.dtype)
        mask = jnp.concatenate([first == first, captions != self.padding], axis=1)

        def step(block, tokens, _):
            six = block.six(None)
            mixed = attention(*block.qkv_of(tokens, six, None), mask)
            return block.finish(tokens, mixed, six)

        return layer_norm(through(step, self.blocks, h)[0]), mask
