"""Small tokenizers set up as those of real models are, and texts that are hard on them.

Used by golden_tokenizer.py and tokenizer_ids.py.
"""
import json
import random
import unicodedata

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers as N, pre_tokenizers as P, processors, trainers

LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
CL100K = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+".replace("(?i:[sdmt]|ll|ve|re)", "(?i:s|d|m|t|ll|ve|re)")
O200K = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
         r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
BLOOM = " ?[^(\\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+"
DEEPSEEK = ["[\r\n]", "\\s?[A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u0386\u0388-\u038a\u0400-\u0481]+", "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
            "\\s+$", "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"]
DEEPSEEK3 = [r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
             r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"]


def split(pattern, behavior="isolated", invert=False):
    return P.Split(Regex(pattern), behavior, invert)


def special(*tokens, **kw):
    return [AddedToken(t, special=True, normalized=False, **kw) for t in tokens]


def byte_bpe(texts, pre, normalizer=None, size=900, added=(), post=None, ignore=False):
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre
    if normalizer:
        t.normalizer = normalizer
    t.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, show_progress=False, initial_alphabet=P.ByteLevel.alphabet()))
    if ignore:
        d = json.loads(t.to_str())
        d["model"]["ignore_merges"] = True
        for w in ("Ġbefore", "Ġbeginning", "righteousness"):  # whole words without merges
            d["model"]["vocab"].setdefault(w, len(d["model"]["vocab"]))
        t = Tokenizer.from_str(json.dumps(d))
    return finish(t, added, post)


def finish(t, added=(), post=None):
    if added:
        t.add_tokens(list(added))
    if post:
        t.post_processor = post(t) if callable(post) and not hasattr(post, "process") else post
    return t


def bos(token):
    def make(t):
        return processors.TemplateProcessing(single=f"{token} $A", pair=f"{token} $A {token} $B", special_tokens=[(token, t.token_to_id(token))])
    return make


def spm_bpe(texts, normalizer, pre=None, size=900, added=(), post=None, fuse=True, fallback=True, unk="<unk>", train=None):
    """BPE over characters with byte tokens, as made of SentencePiece models"""
    t = Tokenizer(models.BPE(unk_token=unk, fuse_unk=fuse, byte_fallback=fallback))
    t.normalizer = normalizer
    t.pre_tokenizer = train or P.Metaspace()
    head = ["<unk>", "<s>", "</s>"] + ([f"<0x{b:02X}>" for b in range(256)] if fallback else [])
    t.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, show_progress=False, special_tokens=head))
    d = json.loads(t.to_str())
    d["added_tokens"] = [a for a in d["added_tokens"] if not a["content"].startswith("<0x")]
    d["pre_tokenizer"] = json.loads(pre.__getstate__()) if pre else None
    return finish(Tokenizer.from_str(json.dumps(d)), added, post)


def unigram(texts, normalizer, pre, size=900, fallback=False, added=(), post=None):
    t = Tokenizer(models.Unigram())
    t.normalizer = N.NFKC()
    t.pre_tokenizer = pre
    head = ["<pad>", "</s>", "<unk>"]
    t.train_from_iterator(texts, trainers.UnigramTrainer(vocab_size=size, show_progress=False, special_tokens=head, unk_token="<unk>"))
    if fallback:
        d = json.loads(t.to_str())
        d["model"]["vocab"] += [[f"<0x{b:02X}>", -20.0 - b / 7] for b in range(256)]
        d["model"]["byte_fallback"] = True
        t = Tokenizer.from_str(json.dumps(d))
    if normalizer:
        t.normalizer = normalizer
    return finish(t, added, post)


def wordpiece(texts, normalizer, pre=None, size=900, added=()):
    t = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    t.normalizer = normalizer
    t.pre_tokenizer = pre or P.BertPreTokenizer()
    t.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=size, show_progress=False, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]))
    return finish(t, added, processors.BertProcessing(("[SEP]", t.token_to_id("[SEP]")), ("[CLS]", t.token_to_id("[CLS]"))))


def build(texts, charsmap):
    """name -> tokenizer"""
    seq, bl = P.Sequence, P.ByteLevel
    last = bl(add_prefix_space=False, use_regex=False)
    out = {}
    out["gpt2"] = byte_bpe(texts, bl(add_prefix_space=False), added=special("<|endoftext|>"), post=processors.ByteLevel(trim_offsets=False))
    out["roberta"] = byte_bpe(texts, bl(add_prefix_space=True), added=special("<s>", "</s>") + special("<mask>", lstrip=True),
                              post=lambda t: processors.RobertaProcessing(("</s>", t.token_to_id("</s>")), ("<s>", t.token_to_id("<s>"))))
    out["neox"] = byte_bpe(texts, bl(add_prefix_space=False), N.NFC(), added=special("<|endoftext|>") + [AddedToken(" " * n, normalized=True) for n in range(24, 1, -1)])
    out["llama3"] = byte_bpe(texts, seq([split(LLAMA3), last]), added=special("<|begin_of_text|>", "<|eot_id|>"), ignore=True,
                             post=lambda t: processors.Sequence([processors.ByteLevel(), bos("<|begin_of_text|>")(t)]))
    out["qwen2"] = byte_bpe(texts, seq([split(QWEN), last]), N.NFC(), added=special("<|im_start|>", "<|im_end|>") + [AddedToken("<tool_call>", normalized=False)])
    out["qwen2-removed"] = byte_bpe(texts, seq([split(QWEN, "removed", True), last]), N.NFC())
    out["gpt4"] = byte_bpe(texts, seq([split(CL100K), last]))
    out["o200k"] = byte_bpe(texts, seq([split(O200K), last]), ignore=True)
    out["bloom"] = byte_bpe(texts, seq([split(BLOOM), last]), added=special("<s>"))
    out["falcon"] = byte_bpe(texts, seq([P.Punctuation("contiguous"), bl(add_prefix_space=False), P.Digits(), split("[0-9][0-9][0-9]")]), added=special(">>TITLE<<", "<|endoftext|>"))
    out["starcoder2"] = byte_bpe(texts, seq([P.Digits(individual_digits=True), bl(add_prefix_space=False)]), added=special("<fim_prefix>"))
    out["deepseek"] = byte_bpe(texts, seq([split(p) for p in DEEPSEEK] + [P.Digits(individual_digits=True), last]), N.Sequence([]))
    out["deepseek3"] = byte_bpe(texts, seq([split(p) for p in DEEPSEEK3] + [last]))
    metaspace = N.Sequence([N.Prepend("▁"), N.Replace(" ", "▁")])
    out["llama2"] = spm_bpe(texts, metaspace, added=special("<s>", "</s>", "<unk>"), post=bos("<s>"))
    out["phi3"] = spm_bpe(texts, metaspace, added=special("<|user|>", "<|end|>", rstrip=True), post=bos("<s>"))
    out["mistral"] = spm_bpe(texts, None, P.Metaspace(prepend_scheme="first", split=False), added=special("[INST]", "[/INST]"), post=bos("<s>"))
    out["gemma"] = spm_bpe(texts, N.Replace(" ", "▁"), P.Split(" ", "merged_with_previous"), added=[AddedToken(c * n, normalized=False) for c in "\n\t" for n in range(2, 9)] + special("<bos>"), post=bos("<bos>"))
    out["unk-fused"] = spm_bpe(texts, N.NFKC(), P.WhitespaceSplit(), fallback=False)
    out["unk-alone"] = spm_bpe(texts, N.Sequence([N.NFD(), N.Lowercase(), N.StripAccents()]), P.Whitespace(), fuse=False, fallback=False)
    out["no-unk"] = spm_bpe(texts, N.NFKD(), P.CharDelimiterSplit("e"), fallback=False, unk=None)
    sub = Tokenizer(models.BPE(unk_token="<unk>", continuing_subword_prefix="##", end_of_word_suffix="</w>"))
    sub.normalizer, sub.pre_tokenizer = N.Sequence([N.Strip(), N.Nmt(), N.Lowercase()]), P.BertPreTokenizer()
    sub.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=900, show_progress=False, special_tokens=["<unk>"], continuing_subword_prefix="##", end_of_word_suffix="</w>"))
    out["subword"] = sub
    pre = N.Precompiled(charsmap)
    out["t5"] = unigram(texts, pre, seq([P.WhitespaceSplit(), P.Metaspace()]), added=[AddedToken(f"<extra_id_{i}>", special=True, normalized=False, rstrip=True) for i in range(3)],
                        post=lambda t: processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", t.token_to_id("</s>"))]))
    out["deberta3"] = unigram(texts, N.Sequence([N.Strip(), pre, N.Replace(Regex(" {2,}"), " ")]), P.Metaspace(prepend_scheme="always"), added=special("[CLS]", "[MASK]"))
    out["t5-first"] = unigram(texts, N.Sequence([pre, N.Strip(left=False), N.Replace(Regex(" {2,}"), "▁")]), P.Metaspace(prepend_scheme="first"), added=special("<x>"))
    out["xlm"] = unigram(texts, N.Sequence([N.Nmt(), N.NFKC(), N.Replace(Regex(" {2,}"), " ")]), P.Metaspace(), fallback=True, added=special("<mask>", lstrip=True))
    out["never"] = unigram(texts, N.Strip(right=False), P.Metaspace(prepend_scheme="never", split=False))
    out["first-strip"] = unigram(texts, N.Strip(right=False), P.Metaspace(prepend_scheme="first"), added=special("<y>"))
    out["bert"] = wordpiece(texts, N.BertNormalizer())
    out["bert-cased"] = wordpiece(texts, N.BertNormalizer(lowercase=False), added=[AddedToken("king", single_word=True, normalized=True), AddedToken("LORD", lstrip=True, rstrip=True, normalized=True)])
    out["bert-accents"] = wordpiece(texts, N.BertNormalizer(strip_accents=False, handle_chinese_chars=False))
    out["bert-normalized"] = wordpiece(texts, N.BertNormalizer(), P.Sequence([P.Whitespace(), P.Punctuation("merged_with_next")]), added=[AddedToken("Héllo", normalized=True), AddedToken("THE", single_word=True)])
    words = Tokenizer(models.WordLevel(unk_token="<unk>"))
    words.pre_tokenizer = P.Sequence([P.Whitespace(), P.Punctuation("merged_with_previous"), split("[aeiou]+", "contiguous", True)])
    words.train_from_iterator(texts, trainers.WordLevelTrainer(vocab_size=800, show_progress=False, special_tokens=["<unk>"]))
    out["words"] = words
    level = byte_bpe(texts, split(LLAMA3, "isolated"), N.ByteLevel())
    out["level-normalizer"] = level
    return out


SPACES = [" ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", "\r", "\u00a0", "\u3000", "\u2003", "\u200b", "\u2028", "\x0b", "\x0c", "\x85", " \n ", "\ufeff", "▁", " ▁"]
PIECES = ["'s", "'S", "'\u017f", "'ll", "'LL", "n't", "'Re", "don't", "İstanbul", "ß", "ẞ", "Σίσυφος", "ΑΣ", "Ǆ", "ǅ", "ﬁ", "ﬀ", "①", "²", "½", "Ⅷ", "٣", "१२", "0123456789", "12", "3.14", "1,000,000", "é", "e\u0301", "n\u0303",
          "\u0301", "a\u0327\u0301", "가", "\u1100\u1161", "한국어", "日本語", "が", "か\u3099", "ﾊﾞ", "中文字符", "𠀀", "😀", "👨\u200d👩\u200d👧", "🇩🇪", "👍🏽", "❤\ufe0f", "ไทย", "हिन्दी", "العربية", "שָׁלוֹם", "Привет", "`", "``", "--", "...",
          "…", "?!", "()", "[x]", "{", "}", "<", ">", "</", "_", "__init__", "a_b", "$", "€", "+=", "~", "^", "|", "\\", "/", "//", "http://x.y/z?q=1&r=%20", "\x00", "\x01", "\x7f", "\x1f", "\ufffd", "\u00ad", "\u200d", "\ue000", "A", "I", "LORD",
          "king", "kings", "king's", "the", "THE", "The", "Jerusalem", "righteousness", "before", "beginning", "Héllo", "HÉLLO", "hello", "camelCase", "ALLCAPS", "mixED", "x" * 30, "a" * 120, "ab" * 70, "-" * 9, "=" * 17, "\u0e33", "ͅ", "ʼn", "℀", "Å", "K"]


def alphabet():
    """characters of all classes, those that every Unicode release since 10 has"""
    old = unicodedata.ucd_3_2_0
    return [c for c in map(chr, range(1, 0x110000)) if old.category(c) not in ("Cn", "Cs", "Co")]


CHARS = alphabet()
SMALL = [c for c in CHARS if ord(c) < 0x3100]


def texts_for(rng, tokens, sentences, count):
    """texts of a few pieces each"""
    out = ["", " ", "  "]
    while len(out) < count:
        parts = []
        for _ in range(rng.choice([1, 2, 3, 5, 8, 13])):
            kind = rng.random()
            if kind < 0.28:
                parts.append(rng.choice(SPACES) * rng.choice([1, 1, 1, 2, 5]))
            elif kind < 0.6:
                parts.append(rng.choice(PIECES))
            elif kind < 0.72:
                words = rng.choice(sentences).split(" ")
                at = rng.randrange(len(words))
                parts.append(rng.choice(["", " "]) + " ".join(words[at : at + rng.randint(1, 5)]))
            elif kind < 0.8 and tokens:
                parts.append(rng.choice(tokens))
            elif kind < 0.84:
                parts.append(str(rng.randrange(10 ** rng.randint(1, 9))))
            elif kind < 0.92:
                parts.append(rng.choice(SMALL))
            else:
                parts.append(rng.choice(CHARS))
        out.append("".join(parts))
    return out


def added_of(t):
    return [a.content for a in t.get_added_tokens_decoder().values()]


def ids_of(t, texts):
    return [e.ids for e in t.encode_batch(texts, add_special_tokens=True)]


def corpus(path):
    with open(path, encoding="utf-8") as f:
        return [line.strip() for line in f if line.strip()]
