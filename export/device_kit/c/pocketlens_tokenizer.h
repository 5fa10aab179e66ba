/*
 * pocketlens_tokenizer.h: text to the ids that a pocketlens text encoder takes, and caption ids to text.
 *
 * C99, no dependency but the C standard headers, pocketlens_normalizer.h and pocketlens_unicode.h, no allocation, no
 * global state. The ids are those of pocketlens.core.tokenizer, which runs the bundle's tokenizer.json through the
 * Hugging Face `tokenizers` library: special tokens in the text are matched, what lies between them is normalised,
 * split into words and cut into tokens: by byte-level BPE (Sennrich et al. 2016), with or without CLIP's marks at the
 * ends of words, or by WordPiece (Devlin et al. 2019: BERT).
 *
 * In exactly one source file:
 *
 *     #define POCKETLENS_TOKENIZER_IMPLEMENTATION
 *     #include "pocketlens_tokenizer.h"
 *
 * and in the others the include alone. Use:
 *
 *     pl_tokenizer tokenizer;
 *     pl_status status = pl_tokenizer_open(&tokenizer, data, size);      (tokenizer.bin, read or mapped)
 *     size_t bytes = pl_tokenizer_workspace(&tokenizer, text_bytes);
 *     status = pl_tokenizer_encode_row(&tokenizer, text, text_bytes, workspace, bytes, row);
 *
 * `row` holds tokenizer.text_length ids: <bos>, the text, <eos>, <pad> ...; give it to the text encoder.
 *
 * tokenizer.bin is tokenizer.json in a flat form: little-endian, read in place at any alignment, checked in
 * full by pl_tokenizer_open. docs/device-kit.md describes it. A device needs no JSON reader, and a new model
 * brings a new file, not a new build.
 *
 * Text is UTF-8 with its length in bytes; it may hold NUL. On Android pass the bytes of
 * `text.toByteArray(Charsets.UTF_8)`, never GetStringUTFChars: that is "modified UTF-8", which writes
 * emoji as surrogates and NUL as two bytes, and is refused here.
 */
#ifndef POCKETLENS_TOKENIZER_H
#define POCKETLENS_TOKENIZER_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#ifndef POCKETLENS_STATUS
#define POCKETLENS_STATUS
/* What a function of the kit returns. The values are stable. */
typedef enum pl_status {
    PL_OK = 0,
    PL_ERROR_ARGUMENT = 1,        /* a null pointer, or a value outside of its documented range */
    PL_ERROR_SHAPE = 2,           /* a side of 0, or an aspect ratio beyond the spec (`bad_shape`) */
    PL_ERROR_TOO_MANY_PIXELS = 3, /* width x height beyond the spec (`too_many_pixels`) */
    PL_ERROR_WORKSPACE = 4,       /* the workspace is smaller than the stated bound */
    PL_ERROR_FILE = 5,            /* tokenizer.bin is damaged or of another version */
    PL_ERROR_UTF8 = 6,            /* the text is not well-formed UTF-8 */
    PL_ERROR_CAPACITY = 7         /* the result does not fit; the needed size was stored */
} pl_status;
#endif

/* An opened tokenizer.bin. It points into the caller's bytes, which must stay as they are while it is used.
 * Read-only after opening: any number of threads may share it. */
typedef struct pl_tokenizer {
    int32_t vocab_size;
    int32_t text_length; /* ids of one row, at least 2 */
    int32_t pad_id;
    int32_t bos_id;
    int32_t eos_id;
    /* The rest is private. */
    const uint8_t *data;
    uint32_t model;
    uint32_t words;
    uint32_t flags;
    uint32_t entries; /* merges of BPE, tokens of WordPiece */
    uint32_t special_count;
    uint32_t unknown_id;
    uint32_t most_letters;  /* WordPiece: longer words are unknown */
    uint32_t longest_token; /* WordPiece: bytes */
    size_t step_words;
    size_t at_steps;
    size_t at_bytes;
    size_t at_tokens;
    size_t at_special;
    size_t at_groups;
    size_t at_entries;
    size_t at_joints;
    size_t at_blob;
} pl_tokenizer;

/* Opens a tokenizer.bin of `size` bytes. Every offset and id in it is checked, so that no later call can read
 * outside of it. Returns PL_OK, PL_ERROR_ARGUMENT for null pointers, or PL_ERROR_FILE. */
pl_status pl_tokenizer_open(pl_tokenizer *tokenizer, const void *data, size_t size);

/* Returns the bytes of workspace that suffice for every text of `text_bytes` bytes: 64 * text_bytes + 128 (at any
 * alignment); 0 where that does not fit a size_t or the text is longer than 2**28 bytes. It suffices for every
 * tokenizer.bin that pocketlens writes: normalising makes no text more than three times as long. */
size_t pl_tokenizer_workspace(const pl_tokenizer *tokenizer, size_t text_bytes);

/* Writes the ids of `text`, without <bos> and <eos>, and stores their number in `*count`.
 *
 * Returns PL_OK; PL_ERROR_CAPACITY when there are more than `capacity` (the first `capacity` are written and
 * `*count` is the full number); PL_ERROR_UTF8; PL_ERROR_WORKSPACE; PL_ERROR_ARGUMENT. `ids` may be null when
 * `capacity` is 0, `text` when `text_bytes` is 0. */
pl_status pl_tokenizer_encode(const pl_tokenizer *tokenizer, const char *text, size_t text_bytes, void *workspace,
                              size_t workspace_bytes, int32_t *ids, size_t capacity, size_t *count);

/* Writes `tokenizer->text_length` ids: <bos>, the first text_length - 2 ids of the text, <eos>, then <pad>.
 *
 * Returns PL_OK, PL_ERROR_UTF8, PL_ERROR_WORKSPACE or PL_ERROR_ARGUMENT. */
pl_status pl_tokenizer_encode_row(const pl_tokenizer *tokenizer, const char *text, size_t text_bytes, void *workspace,
                                  size_t workspace_bytes, int32_t *row);

/* Writes the UTF-8 text of `ids`, special and unknown ids left out, white space at both ends cut off, and stores
 * its length in `*text_bytes`. Bytes that do not form UTF-8 become U+FFFD. No NUL is added.
 *
 * Returns PL_OK; PL_ERROR_CAPACITY when the text needs more than `capacity` bytes (`*text_bytes` says how many,
 * and what was written is to be ignored); PL_ERROR_ARGUMENT. `text` may be null when `capacity` is 0. */
pl_status pl_tokenizer_decode(const pl_tokenizer *tokenizer, const int32_t *ids, size_t count, char *text,
                              size_t capacity, size_t *text_bytes);

#ifdef __cplusplus
}
#endif
#endif /* POCKETLENS_TOKENIZER_H */

#if defined(POCKETLENS_TOKENIZER_IMPLEMENTATION) && !defined(POCKETLENS_TOKENIZER_IMPLEMENTED)
#define POCKETLENS_TOKENIZER_IMPLEMENTED

#include <string.h>

#include "pocketlens_normalizer.h"

#define PL__HEADER_BYTES 80u
#define PL__FORMAT 2u
#define PL__BPE 0u
#define PL__BPE_WORD_ENDS 1u /* the last byte of a word is a symbol of its own: CLIP's "</w>" */
#define PL__WORDPIECE 2u
#define PL__WORDS_NONE 0u
#define PL__WORDS_GPT2 1u
#define PL__WORDS_CLIP 2u
#define PL__WORDS_CLIP_NAMES 3u /* and <|startoftext|>, <|endoftext|> */
#define PL__WORDS_SPACES 4u
#define PL__FLAG_PREFIX_SPACE 1u
#define PL__FLAG_END_MARKS 2u /* "</w>" is a space when ids are decoded */
#define PL__JOINT_SPACE 0u
#define PL__JOINT_CONTINUED 1u /* without its "##" */
#define PL__JOINT_CLOSE 2u     /* as it stands, without a space before */
#define PL__NONE UINT32_MAX
#define PL__MAX_TEXT ((size_t)1 << 28)

static uint32_t pl__word(const pl_tokenizer *tokenizer, size_t at, size_t index) {
    return pl__u32(tokenizer->data + at + 4u * index);
}

/* Is the table of `count` + 1 words at `at` non-decreasing from 0 to `last`? */
static int pl__is_partition(const pl_tokenizer *tokenizer, size_t at, size_t count, uint32_t last) {
    size_t i;
    if (pl__word(tokenizer, at, 0) != 0 || pl__word(tokenizer, at, count) != last) {
        return 0;
    }
    for (i = 0; i < count; ++i) {
        if (pl__word(tokenizer, at, i) > pl__word(tokenizer, at, i + 1)) {
            return 0;
        }
    }
    return 1;
}

static int pl__merges_are_valid(const pl_tokenizer *tokenizer) {
    const uint32_t vocab = (uint32_t)tokenizer->vocab_size;
    uint32_t left;
    for (left = 0; left < vocab; ++left) {
        const uint32_t end = pl__word(tokenizer, tokenizer->at_groups, left + 1u);
        uint32_t i;
        for (i = pl__word(tokenizer, tokenizer->at_groups, left); i < end; ++i) {
            const size_t at = tokenizer->at_entries + 12u * (size_t)i;
            const uint32_t right = pl__word(tokenizer, at, 0);
            if (right >= vocab || pl__word(tokenizer, at, 1) >= PL__NONE || pl__word(tokenizer, at, 2) >= vocab) {
                return 0;
            }
            /* Sorted without repetition, or the binary search would miss one. */
            if (i + 1u < end && right >= pl__word(tokenizer, at + 12u, 0)) {
                return 0;
            }
        }
    }
    return 1;
}

/* Returns the bytes of a token and stores how many there are. */
static const uint8_t *pl__token(const pl_tokenizer *tokenizer, uint32_t id, size_t *bytes) {
    const uint32_t from = pl__word(tokenizer, tokenizer->at_tokens, id);
    *bytes = pl__word(tokenizer, tokenizer->at_tokens, (size_t)id + 1u) - from;
    return tokenizer->data + tokenizer->at_blob + from;
}

/* Compares `first` followed by `second` with a token, as memcmp does; what is the start of another comes first. */
static int pl__compare(const uint8_t *first, size_t first_bytes, const uint8_t *second, size_t second_bytes,
                       const uint8_t *token, size_t token_bytes) {
    size_t common = first_bytes < token_bytes ? first_bytes : token_bytes;
    int order = common != 0 ? memcmp(first, token, common) : 0;
    if (order != 0 || first_bytes > token_bytes) {
        return order != 0 ? order : 1;
    }
    token += first_bytes;
    token_bytes -= first_bytes;
    common = second_bytes < token_bytes ? second_bytes : token_bytes;
    order = common != 0 ? memcmp(second, token, common) : 0;
    if (order != 0) {
        return order;
    }
    return second_bytes < token_bytes ? -1 : second_bytes > token_bytes;
}

/* Are WordPiece's tokens sorted by their bytes, and can a continued one lose its "##"? Finds the longest. */
static int pl__pieces_are_valid(pl_tokenizer *tokenizer) {
    const uint32_t vocab = (uint32_t)tokenizer->vocab_size;
    const uint8_t *before = NULL;
    size_t before_bytes = 0;
    uint32_t i;
    for (i = 0; i < tokenizer->entries; ++i) {
        const uint32_t id = pl__word(tokenizer, tokenizer->at_entries, i);
        const uint8_t *token;
        size_t bytes;
        if (id >= vocab) {
            return 0;
        }
        token = pl__token(tokenizer, id, &bytes);
        if (before != NULL && pl__compare(before, before_bytes, NULL, 0, token, bytes) >= 0) {
            return 0;
        }
        if (bytes > tokenizer->longest_token) {
            tokenizer->longest_token = (uint32_t)bytes;
        }
        before = token;
        before_bytes = bytes;
    }
    for (i = 0; i < vocab; ++i) {
        const uint8_t joint = tokenizer->data[tokenizer->at_joints + i];
        size_t bytes;
        (void)pl__token(tokenizer, i, &bytes);
        if (joint > PL__JOINT_CLOSE || (joint == PL__JOINT_CONTINUED && bytes < 2u)) {
            return 0;
        }
    }
    return 1;
}

/* Stores where the sections are. Returns 0 where the file has another size than they. */
static int pl__lay_out(pl_tokenizer *tokenizer, size_t size) {
    const uint64_t vocab = (uint64_t)tokenizer->vocab_size;
    const int is_bpe = tokenizer->model != PL__WORDPIECE;
    const uint64_t bytes = tokenizer->model == PL__WORDPIECE ? 0u : tokenizer->model == PL__BPE ? 256u : 512u;
    const uint64_t blob = pl__word(tokenizer, 32, 0);
    uint64_t at = PL__HEADER_BYTES;
    uint64_t places[7];
    size_t i;
    const uint64_t lengths[7] = {4u * (uint64_t)tokenizer->step_words,
                                 4u * bytes,
                                 4u * (vocab + 1u),
                                 4u * (uint64_t)tokenizer->special_count,
                                 is_bpe ? 4u * (vocab + 1u) : 0u,
                                 (is_bpe ? 12u : 4u) * (uint64_t)tokenizer->entries,
                                 is_bpe ? 0u : (vocab + 3u) / 4u * 4u};
    for (i = 0; i < 7u; ++i) {
        places[i] = at;
        at += lengths[i];
    }
    if (at + blob != size) {
        return 0;
    }
    tokenizer->at_steps = (size_t)places[0];
    tokenizer->at_bytes = (size_t)places[1];
    tokenizer->at_tokens = (size_t)places[2];
    tokenizer->at_special = (size_t)places[3];
    tokenizer->at_groups = (size_t)places[4];
    tokenizer->at_entries = (size_t)places[5];
    tokenizer->at_joints = (size_t)places[6];
    tokenizer->at_blob = (size_t)at;
    return 1;
}

pl_status pl_tokenizer_open(pl_tokenizer *tokenizer, const void *data, size_t size) {
    uint32_t vocab;
    size_t i;
    if (tokenizer == NULL || data == NULL) {
        return PL_ERROR_ARGUMENT;
    }
    memset(tokenizer, 0, sizeof *tokenizer);
    tokenizer->data = (const uint8_t *)data;
    if (size < PL__HEADER_BYTES || memcmp(data, "PLTK", 4) != 0 || pl__word(tokenizer, 4, 0) != PL__FORMAT) {
        return PL_ERROR_FILE;
    }
    tokenizer->model = pl__word(tokenizer, 8, 0);
    tokenizer->words = pl__word(tokenizer, 12, 0);
    tokenizer->flags = pl__word(tokenizer, 16, 0);
    vocab = pl__word(tokenizer, 20, 0);
    tokenizer->entries = pl__word(tokenizer, 24, 0);
    tokenizer->special_count = pl__word(tokenizer, 28, 0);
    tokenizer->unknown_id = pl__word(tokenizer, 52, 0);
    tokenizer->step_words = pl__word(tokenizer, 56, 0);
    tokenizer->most_letters = pl__word(tokenizer, 60, 0);
    if (tokenizer->model > PL__WORDPIECE || tokenizer->words > PL__WORDS_SPACES || tokenizer->flags > 3u ||
        vocab < 1u || vocab > (1u << 24) || tokenizer->entries > (1u << 24) || tokenizer->special_count > vocab ||
        tokenizer->unknown_id >= vocab || tokenizer->step_words > (1u << 24) ||
        pl__word(tokenizer, 32, 0) > (1u << 30)) {
        return PL_ERROR_FILE;
    }
    tokenizer->vocab_size = (int32_t)vocab;
    if (!pl__lay_out(tokenizer, size) || pl__word(tokenizer, 36, 0) < 2u ||
        pl__word(tokenizer, 36, 0) > (1u << 20)) {
        return PL_ERROR_FILE;
    }
    for (i = 0; i < 3u; ++i) { /* <pad>, <bos>, <eos> */
        if (pl__word(tokenizer, 40, i) >= vocab) {
            return PL_ERROR_FILE;
        }
    }
    tokenizer->text_length = (int32_t)pl__word(tokenizer, 36, 0);
    tokenizer->pad_id = (int32_t)pl__word(tokenizer, 40, 0);
    tokenizer->bos_id = (int32_t)pl__word(tokenizer, 40, 1);
    tokenizer->eos_id = (int32_t)pl__word(tokenizer, 40, 2);
    for (i = tokenizer->at_bytes; i < tokenizer->at_tokens; i += 4u) {
        if (pl__word(tokenizer, i, 0) >= vocab) {
            return PL_ERROR_FILE;
        }
    }
    if (!pl__steps_are_valid(tokenizer->data + tokenizer->at_steps, tokenizer->step_words) ||
        !pl__is_partition(tokenizer, tokenizer->at_tokens, vocab, pl__word(tokenizer, 32, 0))) {
        return PL_ERROR_FILE;
    }
    if (tokenizer->model == PL__WORDPIECE
            ? !pl__pieces_are_valid(tokenizer)
            : !pl__is_partition(tokenizer, tokenizer->at_groups, vocab, tokenizer->entries) ||
                  !pl__merges_are_valid(tokenizer)) {
        return PL_ERROR_FILE;
    }
    for (i = 0; i < tokenizer->special_count; ++i) {
        const uint32_t id = pl__word(tokenizer, tokenizer->at_special, i);
        size_t bytes = 0;
        if (id < vocab) {
            (void)pl__token(tokenizer, id, &bytes);
        }
        if (bytes == 0) { /* an empty special token would match everywhere and end nowhere */
            return PL_ERROR_FILE;
        }
    }
    return PL_OK;
}

size_t pl_tokenizer_workspace(const pl_tokenizer *tokenizer, size_t text_bytes) {
    if (tokenizer == NULL || text_bytes > PL__MAX_TEXT || text_bytes > (SIZE_MAX - 128u) / 64u) {
        return 0;
    }
    return 64u * text_bytes + 128u;
}

/* What one call of encode works with. The workspace is cut into the normalised text, at its start, and scratch
 * that is used for normalising one piece, then for merging one word. */
typedef struct pl__encoder {
    const pl_tokenizer *tokenizer;
    uint8_t *text;     /* normalised piece */
    size_t text_bytes;
    uint32_t *scratch; /* after the text's room */
    size_t scratch_words;
    int32_t *ids;
    size_t capacity;
    size_t count;
    int may_stop;    /* ids beyond `capacity` are of no interest */
    size_t name_end; /* where a name that is cut out as a whole ends: PL__WORDS_CLIP_NAMES */
} pl__encoder;

/* Puts `bytes` bytes of well-formed UTF-8 into encoder->text: normalised, with a space before as configured. */
static pl_status pl__normalise(pl__encoder *encoder, const uint8_t *text, size_t bytes) {
    const pl_tokenizer *tokenizer = encoder->tokenizer;
    const size_t text_room = (size_t)((uint8_t *)encoder->scratch - encoder->text);
    pl__codes codes;
    size_t at = 0;
    size_t i;
    size_t out = 0;
    codes.room = encoder->scratch_words / 2u;
    codes.now = encoder->scratch;
    codes.spare = encoder->scratch + codes.room;
    codes.count = 0;
    while (at < bytes) {
        if (codes.count >= codes.room) {
            return PL_ERROR_WORKSPACE;
        }
        at += pl__decode_utf8(text + at, bytes - at, &codes.now[codes.count]);
        ++codes.count;
    }
    if (!pl__run_steps(&codes, tokenizer->data + tokenizer->at_steps, tokenizer->step_words)) {
        return PL_ERROR_WORKSPACE;
    }
    if ((tokenizer->flags & PL__FLAG_PREFIX_SPACE) != 0 && codes.count != 0 && codes.now[0] != ' ') {
        encoder->text[out++] = ' ';
    }
    for (i = 0; i < codes.count; ++i) {
        if (text_room - out < 4u) {
            return PL_ERROR_WORKSPACE;
        }
        out += pl__encode_utf8(codes.now[i], encoder->text + out);
    }
    encoder->text_bytes = out;
    encoder->name_end = 0;
    return PL_OK;
}

static uint32_t pl__class_at(const pl__encoder *encoder, size_t at, size_t *length) {
    uint32_t code;
    *length = pl__decode_utf8(encoder->text + at, encoder->text_bytes - at, &code);
    return pl__class(code);
}

/* Returns where the run of class `wanted` that starts at `at` ends. */
static size_t pl__run(const pl__encoder *encoder, size_t at, uint32_t wanted) {
    while (at < encoder->text_bytes) {
        size_t length;
        if (pl__class_at(encoder, at, &length) != wanted) {
            break;
        }
        at += length;
    }
    return at;
}

/* 's 't 're 've 'm 'll 'd: returns the bytes of the contraction at `at`, or 0. */
static size_t pl__contraction(const pl__encoder *encoder, size_t at) {
    const uint8_t *text = encoder->text + at;
    const size_t left = encoder->text_bytes - at;
    if (left < 2u || text[0] != '\'') {
        return 0;
    }
    if (text[1] == 's' || text[1] == 't' || text[1] == 'm' || text[1] == 'd') {
        return 2;
    }
    if (left >= 3u && ((text[1] == 'r' && text[2] == 'e') || (text[1] == 'v' && text[2] == 'e') ||
                       (text[1] == 'l' && text[2] == 'l'))) {
        return 3;
    }
    return 0;
}

/* Returns where the word that starts at `at` ends, by the pattern of GPT-2 (Radford et al. 2019):
 *     's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+                            */
static size_t pl__word_end(const pl__encoder *encoder, size_t at) {
    size_t length;
    size_t end;
    uint32_t found;
    const size_t contraction = pl__contraction(encoder, at);
    if (contraction != 0) {
        return at + contraction;
    }
    if (encoder->text[at] == ' ' && at + 1u < encoder->text_bytes) {
        found = pl__class_at(encoder, at + 1u, &length);
        if (found != 3u) {
            return pl__run(encoder, at + 1u, found);
        }
    }
    found = pl__class_at(encoder, at, &length);
    end = pl__run(encoder, at, found);
    if (found == 3u && end < encoder->text_bytes && end > at + length) {
        /* The last white space before a word belongs to what follows. */
        do {
            --end;
        } while ((encoder->text[end] & 0xC0u) == 0x80u);
    }
    return end;
}

/* Returns the bytes of one of the names that transformers' CLIP takes out of a text as a whole, or 0. */
static size_t pl__name(const pl__encoder *encoder, size_t at) {
    static const char *const names[2] = {"<|startoftext|>", "<|endoftext|>"};
    size_t i;
    for (i = 0; i < 2u; ++i) {
        const size_t bytes = strlen(names[i]);
        if (bytes <= encoder->text_bytes - at && memcmp(encoder->text + at, names[i], bytes) == 0) {
            return bytes;
        }
    }
    return 0;
}

/* Returns where the word that starts at `at` ends, by the pattern of CLIP (Radford et al. 2021):
 *     's|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+
 * A name before that is cut at its letters, as GPT-2's pattern does, which transformers runs on each word. */
static size_t pl__clip_word_end(pl__encoder *encoder, size_t at) {
    size_t length;
    size_t end;
    uint32_t found;
    const size_t contraction = pl__contraction(encoder, at);
    if (contraction != 0) {
        return at + contraction;
    }
    if (encoder->tokenizer->words == PL__WORDS_CLIP_NAMES && at >= encoder->name_end) {
        const size_t name = pl__name(encoder, at);
        if (name != 0) {
            encoder->name_end = at + name;
            return at + 2u; /* "<|" */
        }
    }
    found = pl__class_at(encoder, at, &length);
    end = found == 2u ? at + length : pl__run(encoder, at, found);
    return at < encoder->name_end && end > encoder->name_end ? encoder->name_end : end;
}

/* Returns where the next word ends, and stores where it starts; both are the end of the text where there is none. */
static size_t pl__next_word(pl__encoder *encoder, size_t at, size_t *start) {
    *start = at;
    switch (encoder->tokenizer->words) {
    case PL__WORDS_GPT2:
        return pl__word_end(encoder, at);
    case PL__WORDS_CLIP:
    case PL__WORDS_CLIP_NAMES:
        *start = pl__run(encoder, at, 3u);
        return *start < encoder->text_bytes ? pl__clip_word_end(encoder, *start) : *start;
    case PL__WORDS_SPACES:
        *start = pl__run(encoder, at, 3u);
        at = *start;
        while (at < encoder->text_bytes) {
            size_t length;
            if (pl__class_at(encoder, at, &length) == 3u) {
                break;
            }
            at += length;
        }
        return at;
    default:
        return encoder->text_bytes;
    }
}

/* Stores rank and result of merging two ids; the rank is PL__NONE when they do not merge. */
static uint32_t pl__merge(const pl_tokenizer *tokenizer, uint32_t left, uint32_t right, uint32_t *result) {
    uint32_t low = pl__word(tokenizer, tokenizer->at_groups, left);
    uint32_t high = pl__word(tokenizer, tokenizer->at_groups, (size_t)left + 1u);
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2u;
        const size_t at = tokenizer->at_entries + 12u * (size_t)middle;
        const uint32_t found = pl__word(tokenizer, at, 0);
        if (found == right) {
            *result = pl__word(tokenizer, at, 2);
            return pl__word(tokenizer, at, 1);
        }
        if (found < right) {
            low = middle + 1u;
        } else {
            high = middle;
        }
    }
    return PL__NONE;
}

/* The symbols of one word, and a tournament over the ranks of neighbouring pairs. */
typedef struct pl__bpe {
    uint32_t count;
    uint32_t *ids;
    uint32_t *next;
    uint32_t *before;
    uint32_t *rank;   /* of the pair that starts here */
    uint32_t *winner; /* inner nodes 1..count-1: where the pair of least rank starts */
} pl__bpe;

/* Who stands at a node: an inner node's winner, or the leaf itself. */
static uint32_t pl__at_node(const pl__bpe *bpe, uint32_t node) {
    return node >= bpe->count ? node - bpe->count : bpe->winner[node];
}

/* The least rank wins; among equals the leftmost. */
static void pl__play(pl__bpe *bpe, uint32_t node) {
    const uint32_t a = pl__at_node(bpe, 2u * node);
    const uint32_t b = pl__at_node(bpe, 2u * node + 1u);
    const int first = bpe->rank[a] < bpe->rank[b] || (bpe->rank[a] == bpe->rank[b] && a < b);
    bpe->winner[node] = first ? a : b;
}

static void pl__set_rank(pl__bpe *bpe, uint32_t at, uint32_t rank) {
    uint32_t node = (at + bpe->count) / 2u;
    bpe->rank[at] = rank;
    for (; node >= 1u; node /= 2u) {
        pl__play(bpe, node);
    }
}

static uint32_t pl__pair_rank(const pl_tokenizer *tokenizer, const pl__bpe *bpe, uint32_t at) {
    uint32_t ignored;
    if (bpe->next[at] == PL__NONE) {
        return PL__NONE;
    }
    return pl__merge(tokenizer, bpe->ids[at], bpe->ids[bpe->next[at]], &ignored);
}

static void pl__emit(pl__encoder *encoder, uint32_t id) {
    if (encoder->count < encoder->capacity) {
        encoder->ids[encoder->count] = (int32_t)id;
    }
    ++encoder->count;
}

/* Merges the bytes of one word, the pair of least rank first, and emits what is left: O(n log n). */
static pl_status pl__merge_word(pl__encoder *encoder, const uint8_t *word, size_t bytes) {
    const pl_tokenizer *tokenizer = encoder->tokenizer;
    pl__bpe bpe;
    uint32_t i;
    if (bytes > encoder->scratch_words / 5u) {
        return PL_ERROR_WORKSPACE;
    }
    bpe.count = (uint32_t)bytes;
    bpe.ids = encoder->scratch;
    bpe.next = bpe.ids + bytes;
    bpe.before = bpe.next + bytes;
    bpe.rank = bpe.before + bytes;
    bpe.winner = bpe.rank + bytes;
    for (i = 0; i < bpe.count; ++i) {
        /* With word ends the last byte has an id of its own, in the second half of the table. */
        const size_t half = tokenizer->model == PL__BPE_WORD_ENDS && i + 1u == bpe.count ? 256u : 0u;
        bpe.ids[i] = pl__word(tokenizer, tokenizer->at_bytes, half + word[i]);
        bpe.next[i] = i + 1u < bpe.count ? i + 1u : PL__NONE;
        bpe.before[i] = i > 0 ? i - 1u : PL__NONE;
    }
    for (i = 0; i < bpe.count; ++i) {
        bpe.rank[i] = pl__pair_rank(tokenizer, &bpe, i);
    }
    for (i = bpe.count - 1u; i >= 1u; --i) {
        pl__play(&bpe, i);
    }
    while (bpe.count > 1u && bpe.rank[bpe.winner[1]] != PL__NONE) {
        const uint32_t at = bpe.winner[1];
        const uint32_t gone = bpe.next[at];
        uint32_t merged = 0;
        (void)pl__merge(tokenizer, bpe.ids[at], bpe.ids[gone], &merged);
        bpe.ids[at] = merged;
        bpe.next[at] = bpe.next[gone];
        if (bpe.next[at] != PL__NONE) {
            bpe.before[bpe.next[at]] = at;
        }
        pl__set_rank(&bpe, gone, PL__NONE);
        pl__set_rank(&bpe, at, pl__pair_rank(tokenizer, &bpe, at));
        if (bpe.before[at] != PL__NONE) {
            pl__set_rank(&bpe, bpe.before[at], pl__pair_rank(tokenizer, &bpe, bpe.before[at]));
        }
    }
    for (i = 0; i != PL__NONE; i = bpe.next[i]) {
        pl__emit(encoder, bpe.ids[i]);
    }
    return PL_OK;
}

/* Returns the id of the token that is `##` (if `is_continued`) and `bytes` bytes, or PL__NONE. */
static uint32_t pl__piece(const pl_tokenizer *tokenizer, int is_continued, const uint8_t *piece, size_t bytes) {
    static const uint8_t mark[2] = {'#', '#'};
    uint32_t low = 0;
    uint32_t high = tokenizer->entries;
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2u;
        const uint32_t id = pl__word(tokenizer, tokenizer->at_entries, middle);
        size_t token_bytes;
        const uint8_t *token = pl__token(tokenizer, id, &token_bytes);
        const int order = pl__compare(mark, is_continued ? 2u : 0u, piece, bytes, token, token_bytes);
        if (order == 0) {
            return id;
        }
        if (order < 0) {
            high = middle;
        } else {
            low = middle + 1u;
        }
    }
    return PL__NONE;
}

/* Cuts one word into the longest tokens from the left, and emits them; a word that cannot be is unknown as a whole. */
static pl_status pl__cut_word(pl__encoder *encoder, const uint8_t *word, size_t bytes) {
    const pl_tokenizer *tokenizer = encoder->tokenizer;
    size_t letters = 0;
    size_t from = 0;
    size_t count = 0;
    size_t i;
    for (i = 0; i < bytes; ++i) {
        letters += (word[i] & 0xC0u) != 0x80u;
    }
    if (letters <= tokenizer->most_letters && bytes > encoder->scratch_words) {
        return PL_ERROR_WORKSPACE;
    }
    while (letters <= tokenizer->most_letters && from < bytes) {
        const size_t most = bytes - from < tokenizer->longest_token ? bytes - from : tokenizer->longest_token;
        size_t end = from + most;
        uint32_t id = PL__NONE;
        for (; end > from; --end) {
            if (end < bytes && (word[end] & 0xC0u) == 0x80u) {
                continue; /* within a letter */
            }
            id = pl__piece(tokenizer, from != 0, word + from, end - from);
            if (id != PL__NONE) {
                break;
            }
        }
        if (id == PL__NONE) {
            break;
        }
        encoder->scratch[count++] = id;
        from = end;
    }
    if (from < bytes) {
        pl__emit(encoder, tokenizer->unknown_id);
        return PL_OK;
    }
    for (i = 0; i < count; ++i) {
        pl__emit(encoder, encoder->scratch[i]);
    }
    return PL_OK;
}

/* Encodes what lies between two special tokens. */
static pl_status pl__encode_piece(pl__encoder *encoder, const uint8_t *text, size_t bytes) {
    size_t at = 0;
    pl_status status = pl__normalise(encoder, text, bytes);
    while (status == PL_OK && at < encoder->text_bytes && !(encoder->may_stop && encoder->count >= encoder->capacity)) {
        size_t start;
        const size_t end = pl__next_word(encoder, at, &start);
        if (end > start) {
            status = encoder->tokenizer->model == PL__WORDPIECE
                         ? pl__cut_word(encoder, encoder->text + start, end - start)
                         : pl__merge_word(encoder, encoder->text + start, end - start);
        }
        at = end;
    }
    return status;
}

/* Returns the bytes of the longest special token at the start of `text`, and its id; 0 if there is none. */
static size_t pl__special(const pl_tokenizer *tokenizer, const uint8_t *text, size_t bytes, uint32_t *id) {
    size_t longest = 0;
    uint32_t i;
    for (i = 0; i < tokenizer->special_count; ++i) {
        const uint32_t candidate = pl__word(tokenizer, tokenizer->at_special, i);
        size_t length;
        const uint8_t *token = pl__token(tokenizer, candidate, &length);
        if (length > longest && length <= bytes && memcmp(token, text, length) == 0) {
            longest = length;
            *id = candidate;
        }
    }
    return longest;
}

static int pl__is_well_formed(const uint8_t *text, size_t bytes) {
    size_t at = 0;
    while (at < bytes) {
        uint32_t code;
        const size_t length = pl__decode_utf8(text + at, bytes - at, &code);
        if (length == 0) {
            return 0;
        }
        at += length;
    }
    return 1;
}

static pl_status pl__encode(const pl_tokenizer *tokenizer, const char *text, size_t text_bytes, void *workspace,
                            size_t workspace_bytes, int32_t *ids, size_t capacity, int may_stop, size_t *count) {
    const uint8_t *bytes = (const uint8_t *)text;
    pl__encoder encoder;
    pl_status status = PL_OK;
    size_t room;
    size_t skip;
    size_t from = 0;
    size_t at = 0;
    if (tokenizer == NULL || tokenizer->data == NULL || count == NULL || (text == NULL && text_bytes != 0) ||
        (ids == NULL && capacity != 0) || text_bytes > PL__MAX_TEXT) {
        return PL_ERROR_ARGUMENT;
    }
    *count = 0;
    if (!pl__is_well_formed(bytes, text_bytes)) {
        return PL_ERROR_UTF8;
    }
    /* Normalising makes a text at most three times as long (U+1D160 is 4 bytes, and 12 in NFC). */
    room = (3u * text_bytes + 16u) & ~(size_t)3u;
    if (workspace == NULL || workspace_bytes < room + 16u) {
        return PL_ERROR_WORKSPACE;
    }
    skip = (4u - (uintptr_t)workspace % 4u) % 4u;
    encoder.tokenizer = tokenizer;
    encoder.text = (uint8_t *)workspace + skip;
    encoder.text_bytes = 0;
    encoder.scratch = (uint32_t *)(void *)(encoder.text + room);
    encoder.scratch_words = (workspace_bytes - skip - room) / 4u;
    encoder.ids = ids;
    encoder.capacity = capacity;
    encoder.count = 0;
    encoder.may_stop = may_stop;
    encoder.name_end = 0;
    while (status == PL_OK && at < text_bytes && !(may_stop && encoder.count >= capacity)) {
        uint32_t id = 0;
        const size_t length = pl__special(tokenizer, bytes + at, text_bytes - at, &id);
        if (length == 0) {
            ++at;
            continue;
        }
        if (at > from) {
            status = pl__encode_piece(&encoder, bytes + from, at - from);
        }
        if (status == PL_OK) {
            pl__emit(&encoder, id);
        }
        at += length;
        from = at;
    }
    if (status == PL_OK && text_bytes > from && !(may_stop && encoder.count >= capacity)) {
        status = pl__encode_piece(&encoder, bytes + from, text_bytes - from);
    }
    *count = encoder.count;
    return status;
}

pl_status pl_tokenizer_encode(const pl_tokenizer *tokenizer, const char *text, size_t text_bytes, void *workspace,
                              size_t workspace_bytes, int32_t *ids, size_t capacity, size_t *count) {
    const pl_status status =
        pl__encode(tokenizer, text, text_bytes, workspace, workspace_bytes, ids, capacity, 0, count);
    return status == PL_OK && *count > capacity ? PL_ERROR_CAPACITY : status;
}

pl_status pl_tokenizer_encode_row(const pl_tokenizer *tokenizer, const char *text, size_t text_bytes, void *workspace,
                                  size_t workspace_bytes, int32_t *row) {
    size_t count;
    size_t at;
    size_t length;
    pl_status status;
    if (tokenizer == NULL || tokenizer->data == NULL || row == NULL) {
        return PL_ERROR_ARGUMENT;
    }
    length = (size_t)tokenizer->text_length;
    status = pl__encode(tokenizer, text, text_bytes, workspace, workspace_bytes, row + 1, length - 2u, 1, &count);
    if (status != PL_OK) {
        return status;
    }
    count = count < length - 2u ? count : length - 2u;
    row[0] = tokenizer->bos_id;
    row[count + 1u] = tokenizer->eos_id;
    for (at = count + 2u; at < length; ++at) {
        row[at] = tokenizer->pad_id;
    }
    return PL_OK;
}

/* What str.strip of Python cuts off: white space and the four separators U+001C..U+001F. */
static int pl__is_stripped(uint32_t code) {
    return (code >= 0x1Cu && code <= 0x1Fu) || pl__class(code) == 3u;
}

/* The text so far: `length` bytes, of which `solid` reach up to the last one that is not white space. */
typedef struct pl__text {
    uint8_t *out;
    size_t capacity;
    size_t length;
    size_t solid;
    int has_marks; /* "</w>" is a space */
    uint32_t matched;
} pl__text;

static void pl__append_plain(pl__text *text, uint32_t code) {
    uint8_t bytes[4];
    size_t i;
    const int is_stripped = pl__is_stripped(code);
    const size_t length = pl__encode_utf8(code, bytes);
    if (is_stripped && text->length == 0) {
        return;
    }
    for (i = 0; i < length; ++i) {
        if (text->length < text->capacity) {
            text->out[text->length] = bytes[i];
        }
        ++text->length;
    }
    if (!is_stripped) {
        text->solid = text->length;
    }
}

static int pl__is_special(const pl_tokenizer *tokenizer, uint32_t id) {
    uint32_t i;
    for (i = 0; i < tokenizer->special_count; ++i) {
        if (pl__word(tokenizer, tokenizer->at_special, i) == id) {
            return 1;
        }
    }
    return 0;
}

/* Gives out what was held back because it might have become a mark. */
static void pl__let_go(pl__text *text) {
    static const char mark[] = "</w>";
    uint32_t i;
    for (i = 0; i < text->matched; ++i) {
        pl__append_plain(text, (uint32_t)mark[i]);
    }
    text->matched = 0;
}

static void pl__append(pl__text *text, uint32_t code) {
    static const char mark[] = "</w>";
    if (text->has_marks && code == (uint32_t)mark[text->matched]) {
        if (++text->matched == 4u) {
            text->matched = 0;
            pl__append_plain(text, ' ');
        }
        return;
    }
    pl__let_go(text);
    if (text->has_marks && code == (uint32_t)mark[0]) { /* no end of a mark's start is the start of another */
        text->matched = 1;
        return;
    }
    pl__append_plain(text, code);
}

/* Takes what is complete out of `pending`: code points, and U+FFFD for each maximal ill-formed beginning. Unless
 * `flush`, up to three bytes of a sequence that may yet be completed stay. */
static size_t pl__drain(pl__text *text, uint8_t *pending, size_t count, int flush) {
    size_t at = 0;
    while (at < count) {
        uint32_t code;
        const size_t length = pl__decode_utf8(pending + at, count - at, &code);
        if (length == 0 && !flush && code == count - at && pending[at] >= 0xC2u && pending[at] <= 0xF4u) {
            break;
        }
        pl__append(text, length != 0 ? code : 0xFFFDu);
        at += length != 0 ? length : code;
    }
    memmove(pending, pending + at, count - at);
    return count - at;
}

pl_status pl_tokenizer_decode(const pl_tokenizer *tokenizer, const int32_t *ids, size_t count, char *text,
                              size_t capacity, size_t *text_bytes) {
    pl__text result;
    uint8_t pending[8];
    size_t waiting = 0;
    size_t i;
    int is_first = 1;
    if (tokenizer == NULL || tokenizer->data == NULL || text_bytes == NULL || (ids == NULL && count != 0) ||
        (text == NULL && capacity != 0)) {
        return PL_ERROR_ARGUMENT;
    }
    result.out = (uint8_t *)text;
    result.capacity = capacity;
    result.length = 0;
    result.solid = 0;
    result.has_marks = (tokenizer->flags & PL__FLAG_END_MARKS) != 0;
    result.matched = 0;
    for (i = 0; i < count; ++i) {
        const uint32_t id = (uint32_t)ids[i];
        const uint8_t *token;
        size_t bytes;
        size_t from = 0;
        if (id >= (uint32_t)tokenizer->vocab_size || pl__is_special(tokenizer, id)) {
            continue;
        }
        token = pl__token(tokenizer, id, &bytes);
        if (tokenizer->model == PL__WORDPIECE && bytes != 0) {
            const uint8_t joint = tokenizer->data[tokenizer->at_joints + id];
            if (is_first) {
                is_first = 0;
            } else if (joint == PL__JOINT_SPACE) {
                pl__append(&result, ' ');
            } else if (joint == PL__JOINT_CONTINUED) {
                from = 2;
            }
        }
        for (; from < bytes; ++from) {
            pending[waiting++] = token[from];
            waiting = pl__drain(&result, pending, waiting, 0);
        }
    }
    (void)pl__drain(&result, pending, waiting, 1);
    pl__let_go(&result);
    *text_bytes = result.solid;
    return result.solid > capacity ? PL_ERROR_CAPACITY : PL_OK;
}

#endif /* POCKETLENS_TOKENIZER_IMPLEMENTATION */
