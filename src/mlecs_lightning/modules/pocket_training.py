"""Tokenizers and training of pocket backbones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import lightning as L
import torch
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mlecs_lightning.modules.copying import Passages, Words, byte_pair_tokenizer, trimmed
from mlecs_lightning.nn.texts import TextCoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["PocketRecipe", "copying_model", "pocket_coder", "train", "train_to_copy"]

_SLOTS = 16
"""Positions for key words: the length of the soft prompt in the reference configuration."""
_POSITIONS = 256
_LONG, _PASSAGE = 512, 224
"""Positions of a model that copies, and tokens of a sample that it is trained on."""
_DRILLED = 300
"""Steps on random tokens, the first ones of a model that copies."""
_NEIGHBOURS = 3
"""Tokens that the first layers of a model that copies see: each token and the two before it."""
_FAR = 2
"""Layers of such a model, the last ones, that see everything."""
_FILLER, _EOS, _UNKNOWN = "_", "<eos>", "<unk>"
_SLOT = "<slot>"
"""The filler where "_" is one of the bytes that texts are made of."""


@dataclass(frozen=True)
class PocketRecipe:
    """Size and training of a pocket model.

    Attributes:
        layers: Number of transformer blocks.
        width: Hidden width H.
        heads: Number of attention heads.
        steps: Number of training steps.
        batch_size: Pairs per step.
        learning_rate: Peak learning rate of AdamW (one-cycle schedule).
        seed: Seed of weights and sampling.
    """

    layers: int
    width: int
    heads: int = 4
    steps: int = 300
    batch_size: int = 32
    learning_rate: float = 3e-3
    seed: int = 0


def pocket_coder(
    model: str,
    pairs: Sequence[tuple[str, str]],
    instructions: Sequence[str],
    words: Words | None = None,
) -> TextCoder:
    """Return the `TextCoder` of the pocket model for these texts, without training it."""
    if words is not None:
        return _coder(_byte_pairs(words, instructions), model, positions=_LONG)
    return _coder(_tokenizer(pairs, instructions), model)


def _coder(
    tokenizer: PreTrainedTokenizerBase, model: str = "pocket", *, positions: int = _POSITIONS
) -> TextCoder:
    return TextCoder(tokenizer, embedded=len(tokenizer), positions=positions, model=model)


def _byte_pairs(words: Words, instructions: Sequence[str]) -> PreTrainedTokenizerBase:
    texts = words.all_texts(instructions)
    return byte_pair_tokenizer(texts, special=[_EOS, _SLOT], end=_EOS)


def _tokenizer(
    pairs: Sequence[tuple[str, str]], instructions: Sequence[str]
) -> PreTrainedTokenizerBase:
    """Build a word-level tokenizer whose vocabulary is the words of the texts."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    texts = [*(text for pair in pairs for text in pair), *instructions]
    own = [_EOS, _UNKNOWN, _FILLER]  # first, so that their ids are fixed even if texts have them
    words = sorted({word for text in texts for word in text.split()} - {*own})
    vocabulary = {w: i for i, w in enumerate([*own, *words])}
    words_only = Tokenizer(models.WordLevel(vocabulary, unk_token=_UNKNOWN))
    words_only.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=words_only, eos_token=_EOS, unk_token=_UNKNOWN, pad_token=_EOS
    )


class _PairModel(L.LightningModule):
    """Predicts the tokens of a sentence after slots with key words and an instruction."""

    def __init__(self, lm: nn.Module, recipe: PocketRecipe, *, rise: float) -> None:
        super().__init__()
        self.lm, self.recipe, self.rise = lm, recipe, rise

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        tokens, labels = batch
        logits = self.lm(
            input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False
        ).logits[:, :-1]
        return nn.functional.cross_entropy(
            logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
        )

    def configure_optimizers(self) -> OptimizerLRScheduler:
        rate = self.recipe.learning_rate
        optimizer = torch.optim.AdamW(self.parameters(), lr=rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=rate,
            total_steps=self.recipe.steps,
            pct_start=self.rise,
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


class _Pairs(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Random training samples: a pair, with its key words in random slots.

    Sample i depends on i and the seed only.
    """

    def __init__(
        self,
        encoded: Sequence[tuple[Sequence[int], Sequence[int]]],
        instructions: Sequence[Sequence[int]],
        *,
        filler: int,
        eos: int,
        draws: int,
        seed: int,
    ) -> None:
        self.encoded, self.instructions = encoded, instructions
        self.filler, self.eos, self.draws, self.seed = filler, eos, draws, seed
        tails = max(len(sentence) for _, sentence in encoded) + max(
            map(len, instructions), default=0
        )
        self.length = max(_SLOTS, max(len(keys) for keys, _ in encoded)) + tails + 1

    def __len__(self) -> int:
        return self.draws

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)

        def draw(high: int) -> int:
            return int(torch.randint(high, (), generator=generator))

        keys, sentence = self.encoded[draw(len(self.encoded))]
        slots = [self.filler] * max(_SLOTS, len(keys))
        for place, key in zip(torch.randperm(len(slots), generator=generator), keys, strict=False):
            slots[int(place)] = key
        # Half of the samples have no instruction: the model must also work with unknown ones.
        instruction: Sequence[int] = []
        if self.instructions and draw(2):
            instruction = self.instructions[draw(len(self.instructions))]
        head = [*slots, *instruction]
        tokens = [*head, *sentence, self.eos]
        labels = [-100] * len(head) + [*sentence, self.eos]
        pad = self.length - len(tokens)
        return torch.tensor(tokens + [self.eos] * pad), torch.tensor(labels + [-100] * pad)


@contextmanager
def _same_everywhere(seed: int) -> Iterator[None]:
    """Make training depend on the seed only, and restore the caller's random state afterwards.

    Kernels sum in a different order for each number of threads, so one thread is used: every
    machine has to get the same weights. GPUs and their generators are not touched. The instruction
    set of the CPU still matters; digests of the weights detect that.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


def train(
    recipe: PocketRecipe,
    pairs: Sequence[tuple[str, str]],
    instructions: Sequence[str],
    *,
    on_step: Callable[[], None],
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Train a GPT-2 to say the sentence of its key words."""
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = _tokenizer(pairs, instructions)
    eos: int = tokenizer.eos_token_id
    encode = _coder(tokenizer).encode
    data = _Pairs(
        [(encode(keys), encode(sentence)) for keys, sentence in pairs],
        [encode(text) for text in instructions],
        filler=tokenizer.get_vocab()[_FILLER],
        eos=eos,
        draws=recipe.steps * recipe.batch_size,
        seed=recipe.seed,
    )
    with _same_everywhere(recipe.seed):
        lm: PreTrainedModel = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=len(tokenizer),
                n_positions=_POSITIONS,
                n_layer=recipe.layers,
                n_embd=recipe.width,
                n_head=recipe.heads,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                bos_token_id=eos,
                eos_token_id=eos,
                pad_token_id=eos,
            )
        )
        _fit(lm, recipe, data, on_step=on_step)
    return tokenizer, lm.eval()  # type: ignore[no-untyped-call]


def _fit(
    lm: PreTrainedModel,
    recipe: PocketRecipe,
    data: torch.utils.data.Dataset[tuple[Tensor, Tensor]],
    *,
    on_step: Callable[[], None],
    rise: float = 0.3,
    clip: float | None = None,
    collate: Callable[..., tuple[Tensor, Tensor]] | None = None,
) -> None:
    trainer = L.Trainer(
        max_steps=recipe.steps,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=clip,
        callbacks=[LambdaCallback(on_train_batch_end=lambda *_: on_step())],
    )
    loader = DataLoader(data, batch_size=recipe.batch_size, collate_fn=collate)
    trainer.fit(_PairModel(lm, recipe, rise=rise), loader)


def copying_model(
    tokenizer: PreTrainedTokenizerBase, *, layers: int, width: int, heads: int, spread: float = 0.02
) -> PreTrainedModel:
    """Return an untrained model of an architecture that learns to copy quickly.

    To copy, a model finds an earlier occurrence of its last tokens and says what followed it
    (induction heads, arXiv 2209.11895). So the first layers see only three neighbouring tokens, and
    the last two see everything, without positions: they compare contents at any distance. One of
    them finds what to repeat, the other can look at what is said already, and so know where a part
    ends. SmolLM3 is an architecture of the hub that has both kinds of layers. A Llama of this size
    had not learnt it after three times as many steps. Our choice.

    Args:
        tokenizer: Its vocabulary and end-of-sequence token are used.
        layers: Number of transformer blocks.
        width: Hidden width H.
        heads: Number of attention heads.
        spread: Standard deviation of the initial weights.
    """
    from transformers import SmolLM3Config, SmolLM3ForCausalLM

    eos: int = tokenizer.eos_token_id
    near = max(1, layers - _FAR)
    far = layers - near
    return SmolLM3ForCausalLM(
        SmolLM3Config(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            layer_types=[*["sliding_attention"] * near, *["full_attention"] * far],
            no_rope_layers=[*[1] * near, *[0] * far],  # 1 means with positions
            use_sliding_window=True,
            sliding_window=_NEIGHBOURS,
            max_position_embeddings=_LONG,
            tie_word_embeddings=True,
            initializer_range=spread,
            bos_token_id=eos,
            eos_token_id=eos,
            pad_token_id=eos,
        )
    )


def train_to_copy(
    recipe: PocketRecipe,
    words: Words,
    instructions: Sequence[str],
    *,
    on_step: Callable[[], None],
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Train a `copying_model` on `Passages`."""
    tokenizer = _byte_pairs(words, instructions)
    data = Passages(
        words,
        instructions,
        _coder(tokenizer, positions=_LONG),
        filler=tokenizer.get_vocab()[_SLOT],
        slots=_SLOTS,
        draws=recipe.steps * recipe.batch_size,
        drills=_DRILLED * recipe.batch_size,
        length=_PASSAGE,
        seed=recipe.seed,
    )
    with _same_everywhere(recipe.seed):
        lm = copying_model(tokenizer, layers=recipe.layers, width=recipe.width, heads=recipe.heads)
        _fit(lm, recipe, data, on_step=on_step, rise=0.1, clip=1.0, collate=trimmed)
    return tokenizer, lm.eval()  # type: ignore[no-untyped-call]
