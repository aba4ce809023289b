"""What a forward pass keeps for the backward pass, and what exists beside it for a moment, tensor by tensor.

These are the tensors of this package's own kernels (`engine/linear.py`, `layers.py`, `head.py`, attention) and of
transformers' decoder layers around them. `fused` is where norms and gated pairs are compiled and ours.

Letters: T tokens of the row, N asked ones, H hidden size, Q width of all query heads, K of all key heads, I inner size
of the gated pair, R rank, V vocabulary, G query heads; s bytes of a number of hidden states, c of one in matrix
products (autocast's where it is on).
"""

from collections.abc import Iterator
from dataclasses import dataclass

from tunesmith.planner.shapes import Layer, Linear, Shape

WIDE = 4  # bytes of float32, which all but matrix products is computed in

# As engine/head.py and engine/grouped_attention.py have them, which import torch; a test compares.
BLOCK_TOKENS, BLOCK_LOGITS, KEPT_LOGITS = 1024, 1 << 22, 1 << 26
BLOCK_SCORES, SHORTEST_BLOCK, LONGEST_BLOCK, KEPT_KEYS = 1 << 20, 32, 128, 256


@dataclass(frozen=True)
class Pass:
    """A forward and a backward pass of one row through a model."""

    shape: Shape
    tokens: int
    longest: int  # tokens of a sequence: the row is filled with such
    asked: int  # tokens that are learned
    states: int  # s
    computed: int  # c
    fused: bool
    cuda: bool
    checkpointing: bool | int | str
    likelihood: bool  # the loss is the weighted sum of log-probabilities: a trained head makes its gradient at once
    dequantised: int = 0  # bytes of the largest weight that is held in fewer bits, as products take it

    @property
    def autocast(self) -> bool:
        """Whether products have another dtype than hidden states."""
        return self.states != self.computed

    def stream(self) -> int:
        """Hidden states [T, H] s, as they go from layer to layer."""
        return self.tokens * self.shape.hidden * self.states

    def inner(self) -> int:
        """One side of a gated pair [T, I] c."""
        return self.tokens * self.shape.inner * self.computed

    def norm(self, needed: bool, trained: bool) -> int:
        """An RMSNorm of hidden states.

        Ours keeps its input [T, H] s. The model's own keeps the input in float32 where that needs a gradient, and what
        the weight is multiplied with [T, H] s where the weight is trained.
        """
        if self.fused:
            return self.stream() if needed or trained else 0
        wide = self.tokens * self.shape.hidden * WIDE
        return needed * wide + trained * self.stream()

    def given(self, *linears: Linear) -> int:
        """The input [T, inputs] c of linear layers that share it.

        Layers with updates keep it once, for all of them; trained ones too, but that autocast makes a copy for each of
        them. Frozen ones keep nothing.
        """
        one = self.tokens * linears[0].inputs * self.computed
        trained = sum(linear.trained for linear in linears)
        return one * (trained if self.autocast and trained else any(linear.rank for linear in linears) or trained > 0)

    def kept(self, layer: Layer) -> dict[str, int]:
        """What a layer keeps where it is not computed again, in bytes, by part.

        - norms: as `norm`, two or more; the first one's input needs a gradient where something before it is trained.
        - attention: the input of q, k and v [T, H] c; q [T, Q] and k, v [T, K] c as attention takes them; its output
          [T, Q] c where o learns, or the kernel keeps it (CUDA, with a log-sum-exp [T, G] float32); on a CPU the
          shares of short blocks. Norms of queries and keys keep these once more.
        - gated pair: its input [T, H] c; gate and up [T, I] c; the activation [T, I] c where the model's own runs; the
          product [T, I] c where down is trained, or has an update and the model's own runs.
        - low rank: x A' [T, R] c of each update.
        """
        if not layer.learns:
            return {}
        at, shape = layer.linears, self.shape
        queries, keys = (self.tokens * width * self.computed for width in (shape.queries, shape.keys))
        output = queries * (self.cuda or _learns(at["o_proj"]))
        softmax = self.tokens * shape.heads * WIDE if self.cuda else self.shares()
        attention = self.given(at["q_proj"], at["k_proj"], at["v_proj"]) + queries + 2 * keys + output + softmax
        if layer.head_norms:
            attention += (queries + keys) // self.computed * (self.states if self.fused else WIDE)
        product = at["down_proj"].trained or (bool(at["down_proj"].rank) and not self.fused)
        pair = self.given(at["gate_proj"], at["up_proj"]) + self.inner() * (2 + (not self.fused) + product)
        norms = self.norm(layer.below, layer.norms_trained)
        norms += (layer.norms - 1) * self.norm(True, layer.norms_trained)
        return {"norms": norms, "attention": attention, "gated pair": pair, "low rank": self.low_ranks(layer)}

    def low_ranks(self, layer: Layer) -> int:
        """X A' [T, R] c of every update of a layer."""
        return self.tokens * self.computed * sum(linear.rank for linear in layer.linears.values())

    def products(self, layer: Layer) -> int:
        """What a selective checkpoint keeps: the layer's input [T, H] s, products [T, outputs] c and low ranks.

        On CUDA attention's output and log-sum-exp too; on a CPU attention is products by heads, which it makes again.
        """
        if not layer.learns:
            return 0
        outputs = sum(linear.outputs for linear in layer.linears.values()) + self.cuda * self.shape.queries
        softmax = self.cuda * self.tokens * self.shape.heads * WIDE
        return self.stream() + self.tokens * outputs * self.computed + self.low_ranks(layer) + softmax

    def held(self, number: int) -> int:
        """What a layer holds between the passes, as its checkpointing has it: all, products, or its input [T, H] s."""
        layer = self.shape.layers[number]
        if self.checkpointing == "selective":
            return self.products(layer)
        if self.again(number):
            return self.stream() if layer.learns else 0
        return sum(self.kept(layer).values())

    def again(self, number: int) -> bool:
        """Whether a layer is computed again in the backward pass."""
        if self.checkpointing is False:
            return False
        every = 1 if self.checkpointing in (True, "selective") else int(self.checkpointing)
        return number % every == 0

    def beside_again(self, number: int) -> int:
        """What a layer that is computed again holds besides what it keeps, [T, H] s.

        The result that a selective checkpoint has kept; or the layer's input, where its norm keeps only a float32 copy.
        """
        copied = not self.fused and self.states != WIDE
        return self.stream() * (self.again(number) and (self.checkpointing == "selective" or copied))

    def shares(self) -> int:
        """Softmax's shares [G, queries, keys] c of a CPU's attention, of blocks that see at most 256 keys."""
        count = sum(queries * keys for queries, keys in self.blocks() if keys <= KEPT_KEYS)
        return count * self.shape.heads * self.computed

    def blocks(self) -> Iterator[tuple[int, int]]:
        """The blocks of queries of a CPU's attention, and the keys that each sees."""
        for start in range(0, self.tokens, self.longest):
            length = min(self.longest, self.tokens - start)
            size = min(LONGEST_BLOCK, max(SHORTEST_BLOCK, BLOCK_SCORES // (self.shape.heads * length)))
            for first in range(0, length, size):
                last = min(first + size, length)
                least = 0 if self.shape.window is None else max(0, first - self.shape.window + 1)
                yield last - first, last - least

    def attention_scratch(self) -> int:
        """What attention's backward pass has beside what was kept.

        On a CPU: queries [T, Q] and keys [T, K] in float32, the gradients of the output and of queries [T, Q] c, those
        of keys and values [T, K] in float32, and of a block's scores four in float32, or five where its
        shares were not kept. On CUDA: the gradients of the output
        and of queries [T, Q] c and one in float32, and those of keys and values [T, K] c.
        """
        queries, keys = self.tokens * self.shape.queries, self.tokens * self.shape.keys
        if self.cuda:
            return queries * (2 * self.computed + WIDE) + 2 * keys * self.computed
        scores = max(q * k * (4 if k <= KEPT_KEYS else 5) for q, k in self.blocks())
        return queries * (WIDE + 2 * self.computed) + 3 * keys * WIDE + scores * self.shape.heads * WIDE

    def pair_scratch(self, layer: Layer) -> int:
        """What a gated pair's backward pass has beside what was kept, in sides [T, I] c.

        Ours: the gradient of the product, and of gate and up, and the product again: 4. The model's own: the gradients
        of the product, of the activation and of up, while the kept product is gone: 3 less 1. Where down is trained,
        the kept product is gone in ours too.
        """
        down = layer.linears["down_proj"]
        gone = down.trained or (bool(down.rank) and not self.fused)
        return self.inner() * ((4 if self.fused else 3) - gone)

    def layer_scratch(self, layer: Layer) -> int:
        """What exists beside what was kept while a layer's backward pass runs.

        The gradient of its output [T, H] s and of one norm's input; a gated pair's or attention's, by which time the
        pair's is gone; a weight as products take it, where it is held in fewer bits.
        """
        pair = self.kept(layer).get("gated pair", 0)
        return 2 * self.stream() + max(self.pair_scratch(layer), self.attention_scratch() - pair) + self.dequantised


def _learns(linear: Linear) -> bool:
    return bool(linear.rank) or linear.trained


@dataclass(frozen=True)
class HeadPass:
    """A head's part in a pass: log-probabilities in blocks of v words and n tokens."""

    run: Pass

    @property
    def trained(self) -> bool:
        """Whether the head's own weight is trained."""
        return self.run.shape.head.trained

    @property
    def together(self) -> bool:
        """Whether its gradient is made in the forward pass."""
        return self.trained and self.run.likelihood

    def block(self) -> tuple[int, int, int]:
        """Tokens n and words v of a block, and the words of the one after it."""
        words = self.run.shape.vocabulary
        size = min(words, max(16, BLOCK_LOGITS // BLOCK_TOKENS))
        tokens = max(64, KEPT_LOGITS // words) if self.together else BLOCK_TOKENS
        return min(self.run.asked, tokens), size, min(size, words - size)

    def kept(self) -> int:
        """The last norm's, the gradient of what enters [N, H] c; of a trained head its own [V, H] in float32.

        A head's weight that autocast makes a copy of is kept too: [V, H] c. A head of values keeps its input [T, H],
        c by autocast, else in float32.
        """
        run, shape = self.run, self.run.shape
        if not shape.words:
            entering = run.tokens * shape.hidden * (run.computed if run.autocast else WIDE)
            return run.norm(True, shape.last_norm_trained) + entering
        slopes = run.asked * shape.hidden * run.computed
        words = shape.vocabulary * shape.hidden
        own = words * WIDE if self.together else slopes * self.trained
        copy = words * run.computed * (run.autocast and shape.head.item_bytes != run.computed)
        return run.norm(True, shape.last_norm_trained) + slopes + own + copy

    def copied(self) -> int:
        """Autocast's own copy of a trained head's weight [V, H] c, which the model's call of it makes for no tokens."""
        run, head = self.run, self.run.shape.head
        if not self.run.shape.words:
            return 0
        return head.inputs * head.outputs * run.computed * (run.autocast and self.trained and head.item_bytes == WIDE)

    def forward(self) -> int:
        """What exists for a moment in the forward pass beside what is kept.

        Of a block [n, v]: logits c, over which its shares are written; where it is not compiled, four tensors in
        float32 and a bool beside them. Of tokens [n, H]: sums in float32 and room for what is added to them; or, when
        the last block is done, six such. Where the gradient is made at once: the logits c of all words [n, V] in place
        of a block's, and its gradient c; in half precision that is one tensor more. What enters [N, H] c is as large as
        its gradient, which comes when it goes, and is counted as that.
        """
        run = self.run
        if not run.shape.words:
            return 0
        tokens, words, others = self.block()
        sums = tokens * run.shape.hidden * WIDE
        if self.together:
            each, before = self.shaped(), words * run.computed * bool(others)  # the gradient of the block before
            by_word = run.shape.vocabulary * run.computed + max(words * each, others * each + before)
            return max(tokens * by_word + sums, 5 * sums)
        each = run.computed + (0 if run.fused else self.shaped())
        return max(tokens * words * each + 2 * sums, 6 * sums)

    def shaped(self) -> int:
        """Bytes a logit of a block takes while shares or gradients are made of it."""
        if self.run.fused:
            return self.run.computed
        return 4 * WIDE + 1 + (self.run.computed if self.trained and self.run.computed != WIDE else 0)

    def backward(self) -> int:
        """What exists for a moment in the backward pass: the gradient of what enters, [N, H] c, [T, H] s twice.

        A trained head's gradient in its own dtype, where that is not float32, [V, H]; and where it was not made in the
        forward pass, its float32 sum and a block's logits.
        """
        run, shape = self.run, self.run.shape
        found = run.asked * shape.hidden * run.computed + 2 * run.stream()
        if not shape.words:
            return found
        words = shape.vocabulary * shape.hidden
        if self.trained:
            own = {run.computed, shape.head.item_bytes} - {WIDE}
            found += sum(words * size for size in own) + words * WIDE * (run.autocast and shape.head.item_bytes == WIDE)
        if self.trained and not self.together:
            tokens, block, others = self.block()
            each, before = run.computed + self.shaped(), block * run.computed * bool(others)  # logits of the one before
            found += words * WIDE + tokens * max(block * each, others * each + before)
        return found
