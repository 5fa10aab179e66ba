/*
 * pocketlens_normalizer.h: what happens to a text before it is cut into words: the steps of tokenizer.bin, in C.
 * Included by pocketlens_tokenizer.h, and not to be included otherwise.
 *
 * A step is words: what it does, an argument, C, R, then C code points and R ranges (first, last) of code points.
 *
 *     1  NFC      canonical composition (UAX 15)
 *     2  NFD      canonical decomposition
 *     3  lower    lower case, not dependent on context
 *     4  replace  each code point in the ranges by the C code points; each run of them if the argument is 1
 *     5  strip    what is in the ranges: from the start if the argument has bit 1, from the end if it has bit 2
 *     6  around   the C code points before and after each code point in the ranges
 */
#ifndef POCKETLENS_NORMALIZER_H
#define POCKETLENS_NORMALIZER_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "pocketlens_unicode.h"

#define PL__STEP_NFC 1u
#define PL__STEP_NFD 2u
#define PL__STEP_LOWER 3u
#define PL__STEP_REPLACE 4u
#define PL__STEP_STRIP 5u
#define PL__STEP_AROUND 6u
#define PL__MOST_CONTENT 8u

static uint32_t pl__u32(const uint8_t *at) {
    return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
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

/* Puts marks into canonical order (The Unicode Standard, section 3.11). `spare` has room for as many. */
static void pl__order(uint32_t *codes, size_t count, uint32_t *spare) {
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
}

/* Canonical composition of `count` ordered code points in place; returns how many are left. */
static size_t pl__compose_all(uint32_t *codes, size_t count) {
    size_t starter = SIZE_MAX; /* where the last starter went */
    uint32_t last = 0;         /* class of the last one that was kept after it */
    size_t kept = 0;
    size_t i;
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

/* A text as code points, and room for what a step makes of it. */
typedef struct pl__codes {
    uint32_t *now;
    uint32_t *spare;
    size_t count;
    size_t room; /* of each */
} pl__codes;

static void pl__take(pl__codes *codes, size_t count) {
    uint32_t *taken = codes->spare;
    codes->spare = codes->now;
    codes->now = taken;
    codes->count = count;
}

/* NFC or NFD; returns 0 where the room does not suffice, like all steps. */
static int pl__canonical(pl__codes *codes, int is_composed) {
    size_t out = 0;
    size_t i;
    for (i = 0; i < codes->count; ++i) {
        uint32_t parts[4];
        const size_t length = pl__decompose(codes->now[i], parts);
        size_t j;
        if (codes->room - out < length) {
            return 0;
        }
        for (j = 0; j < length; ++j) {
            codes->spare[out++] = parts[j] | pl__combining(parts[j]) << 24;
        }
    }
    pl__take(codes, out);
    pl__order(codes->now, codes->count, codes->spare);
    if (is_composed) {
        codes->count = pl__compose_all(codes->now, codes->count);
    }
    for (i = 0; i < codes->count; ++i) {
        codes->now[i] = pl__code_of(codes->now[i]);
    }
    return 1;
}

static int pl__lower_all(pl__codes *codes) {
    size_t out = 0;
    size_t i;
    for (i = 0; i < codes->count; ++i) {
        uint32_t lower[2];
        const size_t length = pl__lower(codes->now[i], lower);
        if (codes->room - out < length) {
            return 0;
        }
        memcpy(codes->spare + out, lower, length * sizeof *lower);
        out += length;
    }
    pl__take(codes, out);
    return 1;
}

/* Is `code` in one of the `count` ranges, which are sorted? */
static int pl__in_ranges(const uint8_t *ranges, uint32_t count, uint32_t code) {
    uint32_t low = 0;
    uint32_t high = count;
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2u;
        if (code < pl__u32(ranges + 8u * (size_t)middle)) {
            high = middle;
        } else if (code > pl__u32(ranges + 8u * (size_t)middle + 4u)) {
            low = middle + 1u;
        } else {
            return 1;
        }
    }
    return 0;
}

static int pl__put(pl__codes *codes, size_t *out, const uint8_t *words, uint32_t count) {
    uint32_t i;
    if (codes->room - *out < count) {
        return 0;
    }
    for (i = 0; i < count; ++i) {
        codes->spare[(*out)++] = pl__u32(words + 4u * (size_t)i);
    }
    return 1;
}

/* Replaces, or puts something around, what is in the ranges of the step at `step`. */
static int pl__rewrite(pl__codes *codes, const uint8_t *step) {
    const int is_around = pl__u32(step) == PL__STEP_AROUND;
    const int is_run = !is_around && pl__u32(step + 4) == 1u;
    const uint32_t content = pl__u32(step + 8);
    const uint32_t ranges = pl__u32(step + 12);
    const uint8_t *words = step + 16;
    const uint8_t *sets = words + 4u * (size_t)content;
    size_t out = 0;
    size_t i;
    int was_in = 0;
    for (i = 0; i < codes->count; ++i) {
        const uint32_t code = codes->now[i];
        const int is_in = pl__in_ranges(sets, ranges, code);
        if (is_in && !(is_run && was_in) && !pl__put(codes, &out, words, content)) {
            return 0;
        }
        if (!is_in || is_around) {
            if (out >= codes->room) {
                return 0;
            }
            codes->spare[out++] = code;
        }
        if (is_in && is_around && !pl__put(codes, &out, words, content)) {
            return 0;
        }
        was_in = is_in;
    }
    pl__take(codes, out);
    return 1;
}

static void pl__strip_ends(pl__codes *codes, const uint8_t *step) {
    const uint32_t sides = pl__u32(step + 4);
    const uint32_t ranges = pl__u32(step + 12);
    const uint8_t *sets = step + 16u + 4u * (size_t)pl__u32(step + 8);
    size_t from = 0;
    size_t end = codes->count;
    while ((sides & 1u) != 0 && from < end && pl__in_ranges(sets, ranges, codes->now[from])) {
        ++from;
    }
    while ((sides & 2u) != 0 && end > from && pl__in_ranges(sets, ranges, codes->now[end - 1u])) {
        --end;
    }
    memmove(codes->now, codes->now + from, (end - from) * sizeof *codes->now);
    codes->count = end - from;
}

static size_t pl__step_words(const uint8_t *step) {
    return 4u + (size_t)pl__u32(step + 8) + 2u * (size_t)pl__u32(step + 12);
}

/* Runs the steps in `words` words at `program`, which pl__steps_are_valid has seen. Returns 0 where the room does
 * not suffice. */
static int pl__run_steps(pl__codes *codes, const uint8_t *program, size_t words) {
    size_t at = 0;
    int is_done = 1;
    while (is_done && at < words) {
        const uint8_t *step = program + 4u * at;
        switch (pl__u32(step)) {
        case PL__STEP_NFC:
            is_done = pl__canonical(codes, 1);
            break;
        case PL__STEP_NFD:
            is_done = pl__canonical(codes, 0);
            break;
        case PL__STEP_LOWER:
            is_done = pl__lower_all(codes);
            break;
        case PL__STEP_STRIP:
            pl__strip_ends(codes, step);
            break;
        default:
            is_done = pl__rewrite(codes, step);
            break;
        }
        at += pl__step_words(step);
    }
    return is_done;
}

static int pl__is_scalar(uint32_t code) {
    return code < 0x110000u && (code < 0xD800u || code > 0xDFFFu);
}

/* Are the `words` words at `program` whole steps, with ranges that are sorted and apart? */
static int pl__steps_are_valid(const uint8_t *program, size_t words) {
    size_t at = 0;
    while (at < words) {
        const uint8_t *step = program + 4u * at;
        uint32_t content;
        uint32_t ranges;
        uint32_t i;
        uint32_t next = 0;
        if (words - at < 4u) {
            return 0;
        }
        content = pl__u32(step + 8);
        ranges = pl__u32(step + 12);
        if (pl__u32(step) < PL__STEP_NFC || pl__u32(step) > PL__STEP_AROUND || pl__u32(step + 4) > 3u ||
            content > PL__MOST_CONTENT || ranges > 0x110000u ||
            words - at < 4u + (size_t)content + 2u * (size_t)ranges) {
            return 0;
        }
        for (i = 0; i < content; ++i) {
            if (!pl__is_scalar(pl__u32(step + 16u + 4u * (size_t)i))) {
                return 0;
            }
        }
        for (i = 0; i < ranges; ++i) {
            const uint8_t *range = step + 16u + 4u * (size_t)content + 8u * (size_t)i;
            if (pl__u32(range) < next || pl__u32(range + 4) < pl__u32(range) || pl__u32(range + 4) >= 0x110000u) {
                return 0;
            }
            next = pl__u32(range + 4) + 1u;
        }
        at += 4u + (size_t)content + 2u * (size_t)ranges;
    }
    return 1;
}

#endif /* POCKETLENS_NORMALIZER_H */
