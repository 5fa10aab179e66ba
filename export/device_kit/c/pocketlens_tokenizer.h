/*
 * pocketlens_tokenizer.h: text to the ids that a pocketlens text encoder takes, and caption ids to text.
 *
 * C99, no dependency but the C standard headers and pocketlens_unicode.h, no allocation, no global state.
 * The ids are those of pocketlens.core.tokenizer, which runs the bundle's tokenizer.json through the
 * Hugging Face `tokenizers` library: special tokens in the text are matched, what lies between them is put
 * into NFC, lower-cased, split into words and merged (byte-level BPE; Sennrich et al. 2016).
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
    uint32_t flags;
    uint32_t merges;
    uint32_t special_count;
    size_t at_bytes;
    size_t at_tokens;
    size_t at_special;
    size_t at_groups;
    size_t at_merges;
    size_t at_blob;
} pl_tokenizer;

/* Opens a tokenizer.bin of `size` bytes. Every offset and id in it is checked, so that no later call can read
 * outside of it. Returns PL_OK, PL_ERROR_ARGUMENT for null pointers, or PL_ERROR_FILE. */
pl_status pl_tokenizer_open(pl_tokenizer *tokenizer, const void *data, size_t size);

/* Returns the bytes of workspace that suffice for every text of `text_bytes` bytes: 64 * text_bytes + 128 (at any
 * alignment); 0 where that does not fit a size_t or the text is longer than 2**28 bytes. */
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

#include "pocketlens_unicode.h"

#define PL__HEADER_BYTES 64u
#define PL__FLAG_NFC 1u
#define PL__FLAG_LOWER 2u
#define PL__FLAG_PREFIX_SPACE 4u
#define PL__FLAG_WORDS 8u
#define PL__NONE UINT32_MAX
#define PL__MAX_TEXT ((size_t)1 << 28)

static uint32_t pl__u32(const uint8_t *at) {
    return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

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
            const size_t at = tokenizer->at_merges + 12u * (size_t)i;
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

pl_status pl_tokenizer_open(pl_tokenizer *tokenizer, const void *data, size_t size) {
    uint64_t need;
    uint32_t vocab;
    uint32_t blob;
    uint32_t i;
    if (tokenizer == NULL || data == NULL) {
        return PL_ERROR_ARGUMENT;
    }
    memset(tokenizer, 0, sizeof *tokenizer);
    tokenizer->data = (const uint8_t *)data;
    if (size < PL__HEADER_BYTES || memcmp(data, "PLTK", 4) != 0 || pl__word(tokenizer, 4, 0) != 1u) {
        return PL_ERROR_FILE;
    }
    tokenizer->flags = pl__word(tokenizer, 8, 0);
    vocab = pl__word(tokenizer, 12, 0);
    tokenizer->merges = pl__word(tokenizer, 16, 0);
    tokenizer->special_count = pl__word(tokenizer, 20, 0);
    blob = pl__word(tokenizer, 24, 0);
    if (tokenizer->flags > 15u || vocab < 1u || vocab > (1u << 24) || tokenizer->merges > (1u << 24) ||
        tokenizer->special_count > vocab || blob > (1u << 30)) {
        return PL_ERROR_FILE;
    }
    need = PL__HEADER_BYTES + 4u * (256u + 2u * ((uint64_t)vocab + 1u) + tokenizer->special_count) +
           12u * (uint64_t)tokenizer->merges + blob;
    if (need != size) {
        return PL_ERROR_FILE;
    }
    tokenizer->vocab_size = (int32_t)vocab;
    tokenizer->at_bytes = PL__HEADER_BYTES;
    tokenizer->at_tokens = tokenizer->at_bytes + 4u * 256u;
    tokenizer->at_special = tokenizer->at_tokens + 4u * ((size_t)vocab + 1u);
    tokenizer->at_groups = tokenizer->at_special + 4u * (size_t)tokenizer->special_count;
    tokenizer->at_merges = tokenizer->at_groups + 4u * ((size_t)vocab + 1u);
    tokenizer->at_blob = tokenizer->at_merges + 12u * (size_t)tokenizer->merges;
    if (pl__word(tokenizer, 28, 0) < 2u || pl__word(tokenizer, 28, 0) > (1u << 20)) {
        return PL_ERROR_FILE;
    }
    for (i = 0; i < 3u; ++i) { /* <pad>, <bos>, <eos> */
        if (pl__word(tokenizer, 32, i) >= vocab) {
            return PL_ERROR_FILE;
        }
    }
    tokenizer->text_length = (int32_t)pl__word(tokenizer, 28, 0);
    tokenizer->pad_id = (int32_t)pl__word(tokenizer, 32, 0);
    tokenizer->bos_id = (int32_t)pl__word(tokenizer, 32, 1);
    tokenizer->eos_id = (int32_t)pl__word(tokenizer, 32, 2);
    for (i = 0; i < 256u; ++i) {
        if (pl__word(tokenizer, tokenizer->at_bytes, i) >= vocab) {
            return PL_ERROR_FILE;
        }
    }
    if (!pl__is_partition(tokenizer, tokenizer->at_tokens, vocab, blob) ||
        !pl__is_partition(tokenizer, tokenizer->at_groups, vocab, tokenizer->merges) ||
        !pl__merges_are_valid(tokenizer)) {
        return PL_ERROR_FILE;
    }
    for (i = 0; i < tokenizer->special_count; ++i) {
        const uint32_t id = pl__word(tokenizer, tokenizer->at_special, i);
        /* An empty special token would match everywhere and end nowhere. */
        if (id >= vocab || pl__word(tokenizer, tokenizer->at_tokens, id) ==
                               pl__word(tokenizer, tokenizer->at_tokens, (size_t)id + 1u)) {
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

/* Reads one well-formed UTF-8 sequence (Unicode 15, table 3-7) and stores its code point. Returns its bytes; 0 if
 * there is none, with the length of its maximal well-formed beginning, at least 1, in `*code`. */
static size_t pl__decode_utf8(const uint8_t *text, size_t bytes, uint32_t *code) {
    const uint32_t lead = text[0];
    uint32_t low = 0x80u;
    uint32_t high = 0xBFu;
    size_t length;
    size_t i;
    if (lead < 0x80u) {
        *code = lead;
        return 1;
    }
    *code = 1;
    if (lead < 0xC2u || lead > 0xF4u) {
        return 0;
    }
    length = lead < 0xE0u ? 2u : lead < 0xF0u ? 3u : 4u;
    if (lead == 0xE0u) {
        low = 0xA0u; /* shorter forms exist */
    } else if (lead == 0xEDu) {
        high = 0x9Fu; /* surrogates */
    } else if (lead == 0xF0u) {
        low = 0x90u;
    } else if (lead == 0xF4u) {
        high = 0x8Fu; /* beyond U+10FFFF */
    }
    {
        uint32_t value = lead & (0x7Fu >> length);
        for (i = 1; i < length; ++i) {
            if (i >= bytes || text[i] < low || text[i] > high) {
                *code = (uint32_t)i;
                return 0;
            }
            value = value << 6 | (text[i] & 0x3Fu);
            low = 0x80u;
            high = 0xBFu;
        }
        *code = value;
    }
    return length;
}

static size_t pl__encode_utf8(uint32_t code, uint8_t *out) {
    if (code < 0x80u) {
        out[0] = (uint8_t)code;
        return 1;
    }
    if (code < 0x800u) {
        out[0] = (uint8_t)(0xC0u | code >> 6);
        out[1] = (uint8_t)(0x80u | (code & 0x3Fu));
        return 2;
    }
    if (code < 0x10000u) {
        out[0] = (uint8_t)(0xE0u | code >> 12);
        out[1] = (uint8_t)(0x80u | (code >> 6 & 0x3Fu));
        out[2] = (uint8_t)(0x80u | (code & 0x3Fu));
        return 3;
    }
    out[0] = (uint8_t)(0xF0u | code >> 18);
    out[1] = (uint8_t)(0x80u | (code >> 12 & 0x3Fu));
    out[2] = (uint8_t)(0x80u | (code >> 6 & 0x3Fu));
    out[3] = (uint8_t)(0x80u | (code & 0x3Fu));
    return 4;
}

/* Returns the index of the last row whose first column is at most `key`; the first row's is. Rows have `columns`
 * words and are sorted by the first. */
static size_t pl__floor(const uint32_t *table, size_t rows, size_t columns, uint32_t key) {
    size_t low = 0;
    size_t high = rows;
    while (high - low > 1) {
        const size_t middle = low + (high - low) / 2;
        if (table[middle * columns] <= key) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

/* 0 other, 1 letter (\p{L}), 2 number (\p{N}), 3 white space (\s) */
static uint32_t pl__class(uint32_t code) {
    return pl__unicode_class[pl__floor(pl__unicode_class, PL__UNICODE_CLASS_RUNS, 1, code << 2 | 3u)] & 3u;
}

/* The canonical combining class; 0 for starters. */
static uint32_t pl__combining(uint32_t code) {
    const uint32_t *run;
    if (code < 0x300u) {
        return 0;
    }
    run = pl__unicode_combining + 2u * pl__floor(pl__unicode_combining, PL__UNICODE_COMBINING_RUNS, 2, code);
    return code <= (run[1] >> 8) ? (run[1] & 0xFFu) : 0;
}

/* Stores the lower-case form in `lower` and returns how many code points it has: 1, or 2 for U+0130. Not
 * dependent on context: the final sigma stays what it is, as in the library. */
static size_t pl__lower(uint32_t code, uint32_t *lower) {
    lower[0] = code;
    if (code < 0x80u) {
        lower[0] = code - 'A' < 26u ? code + 32u : code;
    } else if (code == 0x130u) {
        lower[0] = 'i';
        lower[1] = 0x307u;
        return 2;
    } else {
        /* first, last << 8 | step, difference: first, first + step ... last are moved. */
        const uint32_t *run = pl__unicode_lower + 3u * pl__floor(pl__unicode_lower, PL__UNICODE_LOWER_RUNS, 3, code);
        if (code >= run[0] && code <= (run[1] >> 8) && (code - run[0]) % (run[1] & 0xFFu) == 0) {
            lower[0] = code + run[2];
        }
    }
    return 1;
}

/* Stores the full canonical decomposition and returns its length, 1..4. */
static size_t pl__decompose(uint32_t code, uint32_t *parts) {
    parts[0] = code;
    if (code < 0xC0u) {
        return 1;
    }
    if (code - 0xAC00u < 11172u) { /* Hangul; The Unicode Standard, section 3.12 */
        const uint32_t index = code - 0xAC00u;
        parts[0] = 0x1100u + index / 588u;
        parts[1] = 0x1161u + index % 588u / 28u;
        parts[2] = 0x11A7u + index % 28u;
        return index % 28u != 0 ? 3 : 2;
    }
    {
        const uint32_t *row = pl__unicode_decompose +
                              2u * pl__floor(pl__unicode_decompose, PL__UNICODE_DECOMPOSE_ROWS, 2, code);
        size_t length;
        size_t i;
        if (row[0] != code) {
            return 1;
        }
        length = row[1] & 7u;
        for (i = 0; i < length; ++i) {
            parts[i] = pl__unicode_parts[(row[1] >> 3) + i];
        }
        return length;
    }
}

/* Returns the primary composite of two code points, or 0. */
static uint32_t pl__compose(uint32_t first, uint32_t second) {
    size_t row;
    if (first - 0x1100u < 19u && second - 0x1161u < 21u) {
        return 0xAC00u + ((first - 0x1100u) * 21u + (second - 0x1161u)) * 28u;
    }
    if (first - 0xAC00u < 11172u && (first - 0xAC00u) % 28u == 0 && second - 0x11A8u < 27u) {
        return first + (second - 0x11A7u);
    }
    /* Rows are sorted by the first, then by the second. */
    row = pl__floor(pl__unicode_compose, PL__UNICODE_COMPOSE_ROWS, 3, first);
    while (pl__unicode_compose[3u * row] == first) {
        if (pl__unicode_compose[3u * row + 1u] == second) {
            return pl__unicode_compose[3u * row + 2u];
        }
        if (row == 0) {
            break;
        }
        --row;
    }
    return 0;
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
    int may_stop; /* ids beyond `capacity` are of no interest */
} pl__encoder;

/* Combining marks are carried with their class: code | class << 24. */
static uint32_t pl__code_of(uint32_t mark) {
    return mark & 0x1FFFFFu;
}

/* Stable sort of a run of marks by class: one pass for each class that occurs, so that no run is quadratic. */
static void pl__sort_marks(uint32_t *marks, size_t count, uint32_t *spare) {
    uint32_t least = 0;
    size_t done = 0;
    size_t i;
    for (i = 1; i < count && marks[i - 1] >> 24 <= marks[i] >> 24; ++i) {
    }
    if (i >= count) {
        return;
    }
    while (done < count) {
        uint32_t next = 256u;
        for (i = 0; i < count; ++i) {
            const uint32_t found = marks[i] >> 24;
            if (found > least && found < next) {
                next = found;
            }
        }
        for (i = 0; i < count; ++i) {
            if (marks[i] >> 24 == next) {
                spare[done++] = marks[i];
            }
        }
        least = next;
    }
    memcpy(marks, spare, count * sizeof *marks);
}

/* Canonical ordering, then canonical composition (UAX 15) of `count` code points in place; returns how many are
 * left. `spare` has room for as many. */
static size_t pl__nfc(uint32_t *codes, size_t count, uint32_t *spare) {
    size_t starter = SIZE_MAX; /* where the last starter went */
    uint32_t last = 0;         /* class of the last one that was kept after it */
    size_t kept = 0;
    size_t i;
    for (i = 0; i < count; ++i) {
        size_t end = i;
        while (end < count && codes[end] >> 24 != 0) {
            ++end;
        }
        if (end > i) {
            pl__sort_marks(codes + i, end - i, spare);
            i = end;
        }
    }
    for (i = 0; i < count; ++i) {
        const uint32_t mark = codes[i];
        const uint32_t combining = mark >> 24;
        if (starter != SIZE_MAX && (kept == starter + 1u || (last < combining && last != 0))) {
            const uint32_t composite = pl__compose(pl__code_of(codes[starter]), pl__code_of(mark));
            if (composite != 0) {
                codes[starter] = composite;
                continue;
            }
        }
        if (combining == 0) {
            starter = kept;
        }
        last = combining;
        codes[kept++] = mark;
    }
    return kept;
}

/* Puts `bytes` bytes of well-formed UTF-8 into encoder->text: a space before, NFC, lower case, as configured. */
static pl_status pl__normalise(pl__encoder *encoder, const uint8_t *text, size_t bytes) {
    const uint32_t flags = encoder->tokenizer->flags;
    const size_t room = encoder->scratch_words / 2u;
    const size_t text_room = (size_t)((uint8_t *)encoder->scratch - encoder->text);
    uint32_t *codes = encoder->scratch;
    size_t count = 0;
    size_t at = 0;
    size_t i;
    size_t out = 0;
    while (at < bytes) {
        uint32_t parts[4];
        uint32_t code;
        size_t length;
        at += pl__decode_utf8(text + at, bytes - at, &code);
        parts[0] = code;
        length = (flags & PL__FLAG_NFC) != 0 ? pl__decompose(code, parts) : 1u;
        if (count + length > room) {
            return PL_ERROR_WORKSPACE;
        }
        for (i = 0; i < length; ++i) {
            codes[count++] = (flags & PL__FLAG_NFC) != 0 ? parts[i] | pl__combining(parts[i]) << 24 : parts[i];
        }
    }
    if ((flags & PL__FLAG_NFC) != 0) {
        count = pl__nfc(codes, count, codes + room);
    }
    for (i = 0; i < count; ++i) {
        uint32_t lower[2];
        size_t length = 1;
        size_t j;
        lower[0] = pl__code_of(codes[i]);
        if ((flags & PL__FLAG_LOWER) != 0) {
            length = pl__lower(lower[0], lower);
        }
        if (out == 0 && (flags & PL__FLAG_PREFIX_SPACE) != 0 && lower[0] != ' ') {
            if (text_room < 1u) {
                return PL_ERROR_WORKSPACE;
            }
            encoder->text[out++] = ' ';
        }
        for (j = 0; j < length; ++j) {
            if (text_room - out < 4u) {
                return PL_ERROR_WORKSPACE;
            }
            out += pl__encode_utf8(lower[j], encoder->text + out);
        }
    }
    encoder->text_bytes = out;
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

/* Stores rank and result of merging two ids; the rank is PL__NONE when they do not merge. */
static uint32_t pl__merge(const pl_tokenizer *tokenizer, uint32_t left, uint32_t right, uint32_t *result) {
    uint32_t low = pl__word(tokenizer, tokenizer->at_groups, left);
    uint32_t high = pl__word(tokenizer, tokenizer->at_groups, (size_t)left + 1u);
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2u;
        const size_t at = tokenizer->at_merges + 12u * (size_t)middle;
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
static pl_status pl__encode_word(pl__encoder *encoder, const uint8_t *word, size_t bytes) {
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
        bpe.ids[i] = pl__word(tokenizer, tokenizer->at_bytes, word[i]);
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

/* Encodes what lies between two special tokens. */
static pl_status pl__encode_piece(pl__encoder *encoder, const uint8_t *text, size_t bytes) {
    size_t at = 0;
    pl_status status = pl__normalise(encoder, text, bytes);
    while (status == PL_OK && at < encoder->text_bytes && !(encoder->may_stop && encoder->count >= encoder->capacity)) {
        const size_t end =
            (encoder->tokenizer->flags & PL__FLAG_WORDS) != 0 ? pl__word_end(encoder, at) : encoder->text_bytes;
        status = pl__encode_word(encoder, encoder->text + at, end - at);
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
        const uint32_t from = pl__word(tokenizer, tokenizer->at_tokens, candidate);
        const size_t length = pl__word(tokenizer, tokenizer->at_tokens, (size_t)candidate + 1u) - from;
        if (length > longest && length <= bytes &&
            memcmp(tokenizer->data + tokenizer->at_blob + from, text, length) == 0) {
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
} pl__text;

static void pl__append(pl__text *text, uint32_t code) {
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
    if (tokenizer == NULL || tokenizer->data == NULL || text_bytes == NULL || (ids == NULL && count != 0) ||
        (text == NULL && capacity != 0)) {
        return PL_ERROR_ARGUMENT;
    }
    result.out = (uint8_t *)text;
    result.capacity = capacity;
    result.length = 0;
    result.solid = 0;
    for (i = 0; i < count; ++i) {
        const uint32_t id = (uint32_t)ids[i];
        uint32_t from;
        uint32_t end;
        if (id >= (uint32_t)tokenizer->vocab_size || pl__is_special(tokenizer, id)) {
            continue;
        }
        from = pl__word(tokenizer, tokenizer->at_tokens, id);
        end = pl__word(tokenizer, tokenizer->at_tokens, (size_t)id + 1u);
        for (; from < end; ++from) {
            pending[waiting++] = tokenizer->data[tokenizer->at_blob + from];
            waiting = pl__drain(&result, pending, waiting, 0);
        }
    }
    (void)pl__drain(&result, pending, waiting, 1);
    *text_bytes = result.solid;
    return result.solid > capacity ? PL_ERROR_CAPACITY : PL_OK;
}

#endif /* POCKETLENS_TOKENIZER_IMPLEMENTATION */
