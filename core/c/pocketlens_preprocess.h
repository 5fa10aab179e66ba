/*
 * pocketlens_preprocess.h: decoded pixels to the uint8 RGB pixels that a pocketlens graph takes.
 *
 * C99, no dependency but the C standard headers, no allocation, no global state, no libm. The bits
 * are those of pocketlens.core.preprocess (spec version 1) on every platform with IEEE 754 doubles.
 *
 * In exactly one source file:
 *
 *     #define POCKETLENS_PREPROCESS_IMPLEMENTATION
 *     #include "pocketlens_preprocess.h"
 *
 * and in the others the include alone. Use:
 *
 *     pl_spec spec = PL_CONFIG_SPEC;                       (pocketlens_config.h, written for the bundle)
 *     pl_picture picture = {pixels, width, height, stride, PL_RGBA, orientation};
 *     size_t bytes = pl_preprocess_workspace(&picture, &spec);
 *     void *workspace = malloc(bytes);
 *     pl_status status = pl_preprocess(&picture, &spec, workspace, bytes, out);
 *
 * `out` holds spec.height * spec.width * 3 bytes: rows from the top, R, G, B. Give it to the graph
 * as it is: casting, mean and standard deviation are inside the graph.
 *
 * What the caller still does: decode the file, and bring wide-gamut pictures to sRGB. Decode WITHOUT
 * applying the EXIF orientation and pass the tag's value on, or decode with it and pass 1. Never both.
 *
 * Memory: `pl_preprocess_workspace` says how many bytes, and nothing else is used but a few hundred
 * bytes of stack. With s the source columns that are read, k and t the taps of a weight row across and
 * down, W the columns that are kept:
 *
 *     bytes <= 3 s b + W (4 (k + 1) + 8) + (3 W + 3) t + 12 max(k, t) + 12 (t + 1) + 384
 *
 * where b is 16 for the orientations 5 to 8, else 1, and taps are at most 4 max(n / m, 1) + 2 for n
 * samples before and m after. 4000 x 3000 to 256 x 256 needs less than 0.5 MiB.
 *
 * Speed: the products are done by SSE2 or NEON where the compiler says that the processor has them
 * (x86-64 and aarch64 always do), in plain C elsewhere, with the same bits. -O2 is enough. Define
 * POCKETLENS_PLAIN_C for plain C everywhere. Fused multiply-add cannot change the result (see
 * pl__times); -ffast-math can, and is refused.
 */
#ifndef POCKETLENS_PREPROCESS_H
#define POCKETLENS_PREPROCESS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define PL_SPEC_VERSION 1

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

/* How the picture meets the target: cover it and keep the centre, ignore the aspect ratio, or fit inside. */
typedef enum pl_fit { PL_CROP = 0, PL_SQUASH = 1, PL_PAD = 2 } pl_fit;

/* Resampling kernel, antialiased; bicubic is Keys (1981) with a = -0.5. */
typedef enum pl_filter { PL_BICUBIC = 0, PL_BILINEAR = 1 } pl_filter;

/* Order of the bytes of one pixel. Four-byte pixels with alpha are laid over `spec.matte`. */
typedef enum pl_format {
    PL_RGB = 0,               /* 3 bytes */
    PL_RGBA = 1,              /* 4 bytes, straight alpha: what PNG and WebP hold */
    PL_RGBA_PREMULTIPLIED = 2, /* 4 bytes, colours times alpha: iOS bitmap contexts, Android bitmaps */
    PL_RGBX = 3               /* 4 bytes, the last is not looked at */
} pl_format;

/* The bundle's preprocessing spec. Initialise it with PL_CONFIG_SPEC of pocketlens_config.h. */
typedef struct pl_spec {
    int32_t height;      /* rows of the result, 1..4096 */
    int32_t width;       /* columns of the result, 1..4096 */
    pl_fit fit;
    pl_filter filter;
    uint8_t matte[3];      /* sRGB colour under transparent pixels */
    uint8_t pad_colour[3]; /* sRGB colour around the picture for PL_PAD */
    int32_t max_pixels;    /* pictures with more are refused, 1..178956970 */
    int32_t max_aspect;    /* pictures with a greater longer / shorter side are refused, 1..1048576 */
} pl_spec;

/* A decoded picture, as it is stored (not yet upright). */
typedef struct pl_picture {
    const uint8_t *pixels; /* the first byte of the first row */
    int32_t width;         /* stored columns */
    int32_t height;        /* stored rows */
    size_t stride;         /* bytes from one row to the next, at least width times bytes per pixel; bytes between
                              rows may be read, none before the first row or behind the last */
    pl_format format;
    int32_t orientation;   /* EXIF tag 0x0112; every value but 2 to 8 counts as 1 */
} pl_picture;

/* Where a picture goes: resized to rows x columns, then shifted so that row `top` and column `left` of
 * that land on the target's first; negative when there is padding. */
typedef struct pl_placement {
    int64_t rows;
    int64_t columns;
    int64_t top;
    int64_t left;
} pl_placement;

/* Returns where an upright picture of height x width pixels goes. Both sides and the spec must be valid. */
pl_placement pl_place(int32_t height, int32_t width, const pl_spec *spec);

/* Returns PL_OK, or why `pl_preprocess` would refuse this picture. No pixel is read. */
pl_status pl_check_picture(const pl_picture *picture, const pl_spec *spec);

/* Returns the bytes of workspace that `pl_preprocess` needs for this picture, at any alignment; 0 when the
 * picture is refused or the number does not fit a size_t. */
size_t pl_preprocess_workspace(const pl_picture *picture, const pl_spec *spec);

/* Writes spec->height * spec->width * 3 bytes to `out`: the picture upright, opaque, placed and resized.
 *
 * `workspace` may be uninitialised and is free again afterwards. `out` and `workspace` must not overlap
 * each other or the picture. Thread-safe: calls share nothing.
 *
 * Returns PL_OK; PL_ERROR_ARGUMENT, PL_ERROR_SHAPE, PL_ERROR_TOO_MANY_PIXELS for what is wrong with the
 * input, or PL_ERROR_WORKSPACE; `out` is untouched then. */
pl_status pl_preprocess(const pl_picture *picture, const pl_spec *spec, void *workspace, size_t workspace_bytes,
                        uint8_t *out);

#ifdef __cplusplus
}
#endif
#endif /* POCKETLENS_PREPROCESS_H */

#if defined(POCKETLENS_PREPROCESS_IMPLEMENTATION) && !defined(POCKETLENS_PREPROCESS_IMPLEMENTED)
#define POCKETLENS_PREPROCESS_IMPLEMENTED

#include <float.h>
#include <string.h>

#if defined(POCKETLENS_PLAIN_C)
#elif defined(__SSE2__) || defined(_M_X64)
#define PL__SSE2
#include <emmintrin.h>
#elif defined(__ARM_NEON)
#define PL__NEON
#include <arm_neon.h>
#endif

#if defined(__FAST_MATH__)
#error "pocketlens_preprocess.h: -ffast-math reorders the sums of the weights; compile this file without it"
#endif
#if defined(FLT_EVAL_METHOD) && FLT_EVAL_METHOD != 0
#error "pocketlens_preprocess.h: doubles must be evaluated as doubles (32-bit x86: -msse2 -mfpmath=sse)"
#endif

#ifdef __cplusplus
#define PL__RESTRICT __restrict
#else
#define PL__RESTRICT restrict
#endif

#define PL__PRECISION 22   /* fraction bits of a weight */
#define PL__LOW 12         /* of those, the bits in the low half: both halves then fit an int16 */
#define PL__GROUP 4        /* bytes that one step reads, and sums that it keeps: a pixel, or samples of a row */
#define PL__BLOCK_ROWS 16  /* upright rows fetched at once when they are stored as columns */
#define PL__BEHIND 4       /* bytes behind a row that may be read: one byte of the last pixel's group, or one pixel of
                              zero weight and its byte */
#define PL__MAX_SIDE 4096
#define PL__MAX_PIXELS 178956970
#define PL__MAX_ASPECT 1048576

/* The upright picture as addresses: pixel (r, c) is at origin + r * row + c * column. */
typedef struct pl__view {
    const uint8_t *origin;
    ptrdiff_t row;
    ptrdiff_t column;
    int32_t height;
    int32_t width;
    pl_format format;
} pl__view;

/* One axis: n samples before, m after, of which `keep` from `from` on are wanted. When n == m nothing is
 * resampled: first..end is the window itself. */
typedef struct pl__axis {
    int32_t before;
    int64_t after;
    int64_t from;
    int32_t keep;
    int32_t first; /* source samples first..end-1 are read */
    int32_t end;
    int32_t taps;  /* the most samples that one output reads */
    double scale;
    double stretch;
    double support;
    pl_filter filter;
} pl__axis;

/* What one output column reads: `count` samples from the `first` of those that the axis reads. */
typedef struct pl__reads {
    int32_t first;
    int32_t count;
} pl__reads;

/* Everything that is derived from picture and spec before a pixel is read. */
typedef struct pl__plan {
    pl__view view;
    pl__axis across;
    pl__axis down;
    int32_t top; /* of the resized picture in `out`, when there is padding */
    int32_t left;
    int32_t taps; /* across, even */
    int32_t block_rows;
    int32_t pitch; /* bytes from one row of the ring to the next */
    uint64_t at_reads;
    uint64_t at_weights;
    uint64_t at_block;
    uint64_t at_ring;
    uint64_t at_rows;
    uint64_t at_halves;
    uint64_t at_exact;
    uint64_t at_fixed;
    uint64_t bytes;
} pl__plan;

static int32_t pl__bytes_per_pixel(pl_format format) {
    return format == PL_RGB ? 3 : 4;
}

static int64_t pl__near(int64_t numerator, int64_t denominator) {
    return (2 * numerator + denominator) / (2 * denominator);
}

static int64_t pl__at_least_1(int64_t value) {
    return value < 1 ? 1 : value;
}

/* A product that was rounded to double. Where the processor can fuse it into an addition, a store keeps compilers from
 * that, whatever -ffp-contract says: GCC's default outside of -std=c99 would, on aarch64. */
static double pl__times(double a, double b) {
#if (defined(__x86_64__) || defined(_M_X64)) && !defined(__FMA__)
    return a * b;
#else
    volatile double product = a * b;
    return product;
#endif
}

static double pl__kernel(double x, pl_filter filter) {
    const double a = -0.5;
    if (x < 0.0) {
        x = -x;
    }
    if (filter == PL_BILINEAR) {
        return x < 1.0 ? 1.0 - x : 0.0;
    }
    if (x < 1.0) {
        return pl__times(pl__times(pl__times(a + 2.0, x) - (a + 3.0), x), x) + 1.0;
    }
    if (x < 2.0) {
        return pl__times(pl__times(pl__times(x - 5.0, x) + 8.0, x) - 4.0, a);
    }
    return 0.0;
}

/* The samples that output i reads: *first up to, not including, the result. */
static int32_t pl__span(const pl__axis *axis, int64_t i, int32_t *first, double *centre) {
    const double c = pl__times((double)i + 0.5, axis->scale);
    const double low = c - axis->support + 0.5;
    const double high = c + axis->support + 0.5;
    *centre = c;
    *first = low > 0.0 ? (int32_t)low : 0; /* a cast truncates */
    return high < (double)axis->before ? (int32_t)high : axis->before;
}

/* Writes the weights of output i in units of 2**-22 and returns their number; `exact` is scratch. */
static int32_t pl__weights(const pl__axis *axis, int64_t i, int32_t *first, double *exact, int32_t *fixed) {
    double centre;
    double total = 0.0;
    const double squeeze = 1.0 / axis->stretch;
    const int32_t count = pl__span(axis, i, first, &centre) - *first;
    int32_t t;
    for (t = 0; t < count; ++t) {
        exact[t] = pl__kernel(pl__times((double)(*first + t) - centre + 0.5, squeeze), axis->filter);
        total += exact[t];
    }
    for (t = 0; t < count; ++t) {
        const double weight = total != 0.0 ? exact[t] / total : exact[t];
        const double scaled = pl__times(weight, (double)((int32_t)1 << PL__PRECISION));
        fixed[t] = (int32_t)(scaled < 0.0 ? scaled - 0.5 : scaled + 0.5);
    }
    return count;
}

static void pl__plan_axis(pl__axis *axis, int32_t before, int64_t after, int64_t from, int32_t keep,
                          pl_filter filter) {
    int32_t i;
    axis->before = before;
    axis->after = after;
    axis->from = from;
    axis->keep = keep;
    axis->filter = filter;
    axis->scale = (double)before / (double)after;
    axis->stretch = axis->scale > 1.0 ? axis->scale : 1.0;
    axis->support = (filter == PL_BILINEAR ? 1.0 : 2.0) * axis->stretch;
    axis->taps = 0;
    if ((int64_t)before == after) {
        axis->first = (int32_t)from;
        axis->end = (int32_t)from + keep;
        axis->taps = 1;
        return;
    }
    axis->first = before;
    axis->end = 0;
    for (i = 0; i < keep; ++i) {
        double centre;
        int32_t first;
        const int32_t end = pl__span(axis, from + i, &first, &centre);
        axis->first = first < axis->first ? first : axis->first;
        axis->end = end > axis->end ? end : axis->end;
        axis->taps = end - first > axis->taps ? end - first : axis->taps;
    }
}

static pl__view pl__upright(const pl_picture *picture) {
    const ptrdiff_t pixel = (ptrdiff_t)pl__bytes_per_pixel(picture->format);
    const ptrdiff_t stride = (ptrdiff_t)picture->stride;
    const uint8_t *last_row = picture->pixels + (ptrdiff_t)(picture->height - 1) * stride;
    const ptrdiff_t last = (ptrdiff_t)(picture->width - 1) * pixel;
    pl__view view;
    view.format = picture->format;
    view.height = picture->height;
    view.width = picture->width;
    view.origin = picture->pixels;
    view.row = stride;
    view.column = pixel;
    switch (picture->orientation) {
    case 2:
        view.origin = picture->pixels + last;
        view.column = -pixel;
        break;
    case 3:
        view.origin = last_row + last;
        view.row = -stride;
        view.column = -pixel;
        break;
    case 4:
        view.origin = last_row;
        view.row = -stride;
        break;
    case 5:
        view.row = pixel;
        view.column = stride;
        break;
    case 6:
        view.origin = last_row;
        view.row = pixel;
        view.column = -stride;
        break;
    case 7:
        view.origin = last_row + last;
        view.row = -pixel;
        view.column = -stride;
        break;
    case 8:
        view.origin = picture->pixels + last;
        view.row = -pixel;
        view.column = stride;
        break;
    default:
        break;
    }
    if (picture->orientation >= 5 && picture->orientation <= 8) {
        view.height = picture->width;
        view.width = picture->height;
    }
    return view;
}

pl_placement pl_place(int32_t height, int32_t width, const pl_spec *spec) {
    const int64_t h = height;
    const int64_t w = width;
    const int64_t by_width = spec->width * h - spec->height * w;
    pl_placement placement;
    placement.rows = spec->height;
    placement.columns = spec->width;
    if ((spec->fit == PL_CROP && by_width >= 0) || (spec->fit == PL_PAD && by_width <= 0)) {
        placement.rows = pl__at_least_1(pl__near(h * spec->width, w));
    } else if (spec->fit != PL_SQUASH) {
        placement.columns = pl__at_least_1(pl__near(w * spec->height, h));
    }
    if (spec->fit == PL_PAD) {
        placement.top = -((spec->height - placement.rows) / 2);
        placement.left = -((spec->width - placement.columns) / 2);
    } else {
        placement.top = (placement.rows - spec->height) / 2;
        placement.left = (placement.columns - spec->width) / 2;
    }
    return placement;
}

static int pl__spec_is_valid(const pl_spec *spec) {
    return spec->height >= 1 && spec->height <= PL__MAX_SIDE && spec->width >= 1 && spec->width <= PL__MAX_SIDE &&
           (spec->fit == PL_CROP || spec->fit == PL_SQUASH || spec->fit == PL_PAD) &&
           (spec->filter == PL_BICUBIC || spec->filter == PL_BILINEAR) && spec->max_pixels >= 1 &&
           spec->max_pixels <= PL__MAX_PIXELS && spec->max_aspect >= 1 && spec->max_aspect <= PL__MAX_ASPECT;
}

pl_status pl_check_picture(const pl_picture *picture, const pl_spec *spec) {
    int64_t longer;
    int64_t shorter;
    if (picture == NULL || spec == NULL || picture->pixels == NULL || !pl__spec_is_valid(spec) ||
        (picture->format != PL_RGB && picture->format != PL_RGBA && picture->format != PL_RGBA_PREMULTIPLIED &&
         picture->format != PL_RGBX)) {
        return PL_ERROR_ARGUMENT;
    }
    if (picture->width < 1 || picture->height < 1) {
        return PL_ERROR_SHAPE;
    }
    if ((int64_t)picture->width * picture->height > spec->max_pixels) {
        return PL_ERROR_TOO_MANY_PIXELS;
    }
    longer = picture->width > picture->height ? picture->width : picture->height;
    shorter = picture->width > picture->height ? picture->height : picture->width;
    if (longer > spec->max_aspect * shorter) {
        return PL_ERROR_SHAPE;
    }
    /* The last byte must have an address: a stride that cannot be one is a mistake, not a picture. */
    if (picture->stride < (size_t)picture->width * (size_t)pl__bytes_per_pixel(picture->format) ||
        picture->stride > (size_t)PTRDIFF_MAX / (size_t)picture->height) {
        return PL_ERROR_ARGUMENT;
    }
    return PL_OK;
}

static int32_t pl__even(int32_t count) {
    return count + (count & 1);
}

static uint64_t pl__section(uint64_t *end, uint64_t bytes) {
    const uint64_t start = *end;
    *end = start + ((bytes + 15u) & ~(uint64_t)15u);
    return start;
}

static void pl__make_plan(pl__plan *plan, const pl_picture *picture, const pl_spec *spec) {
    pl_placement placement;
    int32_t rows;
    int32_t columns;
    uint64_t span;
    uint64_t taps;
    uint64_t end = 0;
    int transposed;
    plan->view = pl__upright(picture);
    placement = pl_place(plan->view.height, plan->view.width, spec);
    rows = placement.rows < spec->height ? (int32_t)placement.rows : spec->height;
    columns = placement.columns < spec->width ? (int32_t)placement.columns : spec->width;
    plan->top = placement.top < 0 ? (int32_t)-placement.top : 0;
    plan->left = placement.left < 0 ? (int32_t)-placement.left : 0;
    pl__plan_axis(&plan->across, plan->view.width, placement.columns, placement.left > 0 ? placement.left : 0, columns,
                  spec->filter);
    pl__plan_axis(&plan->down, plan->view.height, placement.rows, placement.top > 0 ? placement.top : 0, rows,
                  spec->filter);
    transposed = picture->orientation >= 5 && picture->orientation <= 8;
    plan->block_rows = transposed ? PL__BLOCK_ROWS : 1;
    plan->taps = pl__even(plan->across.taps);
    plan->pitch = (columns * 3 + PL__GROUP - 1) / PL__GROUP * PL__GROUP;
    span = (uint64_t)(plan->across.end - plan->across.first);
    taps = (uint64_t)(plan->across.taps > plan->down.taps ? plan->across.taps : plan->down.taps);
    plan->at_reads = pl__section(&end, (uint64_t)columns * sizeof(pl__reads));
    plan->at_weights = pl__section(&end, (uint64_t)columns * (uint64_t)plan->taps * 2u * sizeof(int16_t));
    plan->at_block = pl__section(&end, span * 3u * (uint64_t)plan->block_rows + PL__BEHIND);
    plan->at_ring = pl__section(&end, (uint64_t)plan->down.taps * (uint64_t)plan->pitch);
    plan->at_rows = pl__section(&end, (uint64_t)pl__even(plan->down.taps) * sizeof(uint8_t *));
    plan->at_halves = pl__section(&end, (uint64_t)pl__even(plan->down.taps) * 2u * sizeof(int16_t));
    plan->at_exact = pl__section(&end, taps * sizeof(double));
    plan->at_fixed = pl__section(&end, taps * sizeof(int32_t));
    plan->bytes = end + 15u; /* the caller's pointer may be at any address */
}

size_t pl_preprocess_workspace(const pl_picture *picture, const pl_spec *spec) {
    pl__plan plan;
    if (pl_check_picture(picture, spec) != PL_OK) {
        return 0;
    }
    pl__make_plan(&plan, picture, spec);
    return plan.bytes > (uint64_t)PTRDIFF_MAX ? 0 : (size_t)plan.bytes;
}

/* round(value / 255), halves up, for 0 <= value <= 65535 - 128 */
static uint8_t pl__by_255(uint32_t value) {
    value += 128u;
    return (uint8_t)((value + (value >> 8)) >> 8);
}

/* One pixel to opaque RGB. */
static void pl__opaque(const uint8_t *pixel, pl_format format, const uint8_t *matte, uint8_t *rgb) {
    const uint32_t alpha = (format == PL_RGB || format == PL_RGBX) ? 255u : pixel[3];
    int channel;
    for (channel = 0; channel < 3; ++channel) {
        uint32_t level = pixel[channel];
        if (alpha != 255u) {
            if (format == PL_RGBA_PREMULTIPLIED && alpha != 0u) {
                level = 255u * level / alpha;
                level = level > 255u ? 255u : level;
            }
            level = pl__by_255(alpha * level + (255u - alpha) * matte[channel]);
        }
        rgb[channel] = (uint8_t)level;
    }
}

/* Writes `rows` upright rows from `row` on, columns first..end-1, as RGB. When rows are stored as columns, the
 * inner loop runs along the stored row: one cache line then serves several upright rows. */
static void pl__fetch(const pl__view *view, const uint8_t *matte, int32_t row, int32_t rows, int32_t first, int32_t end,
                      uint8_t *rgb) {
    const ptrdiff_t width = (ptrdiff_t)(end - first) * 3;
    int32_t r;
    int32_t c;
    if (rows == 1) {
        const uint8_t *origin = view->origin + row * view->row;
        for (c = first; c < end; ++c, rgb += 3) {
            pl__opaque(origin + c * view->column, view->format, matte, rgb);
        }
        return;
    }
    for (c = first; c < end; ++c, rgb += 3) {
        const uint8_t *origin = view->origin + row * view->row + c * view->column;
        for (r = 0; r < rows; ++r) {
            pl__opaque(origin + r * view->row, view->format, matte, rgb + r * width);
        }
    }
}

/* The products. A weight is split into halves that fit an int16, high * 2**12 + low: an int16 times an int16, summed
 * in pairs, is one instruction on x86 (pmaddwd) and two on ARM (smlal); a product of int32 is more on baseline x86-64.
 * Both passes take four bytes at a time from two places, a pixel and its neighbour or two rows, and add their products
 * with two weights to four sums of each half. What they need of the processor are two types and four functions:
 *
 * pl__pair      four bytes of one place and four of another
 * pl__sums      four sums of each half
 * pl__load      bytes -> pair
 * pl__start     sums that are 0, but for the rounding constant
 * pl__add       sums + pair * weights, which are given as high, high, low, low
 * pl__store     (high * 2**12 + low) >> 22, clipped, of the first `count` <= 4 sums
 *
 * The sums are exact: the magnitudes of a row's weights add up to less than 2, and both |low| <= |weight| and
 * |high| * 2**12 <= 2 |weight| or high is 0, so no sum of products with bytes leaves an int32, nor does the whole,
 * which is put together modulo 2**32. */
#define PL__HALF_LEVEL ((int32_t)1 << (PL__PRECISION - 1))

#if defined(PL__SSE2)
typedef __m128i pl__pair;
typedef struct pl__sums {
    __m128i high;
    __m128i low;
} pl__sums;

static __m128i pl__four(const uint8_t *bytes) {
    int32_t value;
    memcpy(&value, bytes, sizeof value);
    return _mm_cvtsi32_si128(value);
}

static pl__pair pl__load(const uint8_t *a, const uint8_t *b) {
    return _mm_unpacklo_epi8(_mm_unpacklo_epi8(pl__four(a), pl__four(b)), _mm_setzero_si128());
}

static pl__sums pl__start(void) {
    pl__sums sums;
    sums.high = _mm_setzero_si128();
    sums.low = _mm_set1_epi32(PL__HALF_LEVEL);
    return sums;
}

static pl__sums pl__add(pl__sums sums, pl__pair pair, const int16_t *weights) {
    const __m128i halves = _mm_loadl_epi64((const __m128i *)(const void *)weights);
    sums.high = _mm_add_epi32(sums.high, _mm_madd_epi16(pair, _mm_shuffle_epi32(halves, 0x00)));
    sums.low = _mm_add_epi32(sums.low, _mm_madd_epi16(pair, _mm_shuffle_epi32(halves, 0x55)));
    return sums;
}

static void pl__store(pl__sums sums, uint8_t *out, size_t count) {
    const __m128i whole = _mm_add_epi32(_mm_slli_epi32(sums.high, PL__LOW), sums.low);
    const __m128i words = _mm_packs_epi32(_mm_srai_epi32(whole, PL__PRECISION), _mm_setzero_si128());
    const int32_t bytes = _mm_cvtsi128_si32(_mm_packus_epi16(words, words));
    memcpy(out, &bytes, count);
}
#elif defined(PL__NEON)
typedef int16x4x2_t pl__pair;
typedef struct pl__sums {
    int32x4_t high;
    int32x4_t low;
} pl__sums;

static int16x4_t pl__four(const uint8_t *bytes) {
    uint32_t value;
    memcpy(&value, bytes, sizeof value);
    return vreinterpret_s16_u16(vget_low_u16(vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(value)))));
}

static pl__pair pl__load(const uint8_t *a, const uint8_t *b) {
    pl__pair pair;
    pair.val[0] = pl__four(a);
    pair.val[1] = pl__four(b);
    return pair;
}

static pl__sums pl__start(void) {
    pl__sums sums;
    sums.high = vdupq_n_s32(0);
    sums.low = vdupq_n_s32(PL__HALF_LEVEL);
    return sums;
}

static pl__sums pl__add(pl__sums sums, pl__pair pair, const int16_t *weights) {
    const int16x4_t halves = vld1_s16(weights);
    sums.high = vmlal_lane_s16(vmlal_lane_s16(sums.high, pair.val[0], halves, 0), pair.val[1], halves, 1);
    sums.low = vmlal_lane_s16(vmlal_lane_s16(sums.low, pair.val[0], halves, 2), pair.val[1], halves, 3);
    return sums;
}

static void pl__store(pl__sums sums, uint8_t *out, size_t count) {
    const int32x4_t whole = vaddq_s32(vshlq_n_s32(sums.high, PL__LOW), sums.low);
    const uint16x4_t words = vqmovun_s32(vshrq_n_s32(whole, PL__PRECISION));
    const uint32_t bytes = vget_lane_u32(vreinterpret_u32_u8(vqmovn_u16(vcombine_u16(words, words))), 0);
    memcpy(out, &bytes, count);
}
#else
typedef struct pl__pair {
    const uint8_t *a;
    const uint8_t *b;
} pl__pair;
typedef struct pl__sums {
    int32_t high[PL__GROUP];
    int32_t low[PL__GROUP];
} pl__sums;

static pl__pair pl__load(const uint8_t *a, const uint8_t *b) {
    pl__pair pair;
    pair.a = a;
    pair.b = b;
    return pair;
}

static pl__sums pl__start(void) {
    pl__sums sums;
    int i;
    for (i = 0; i < PL__GROUP; ++i) {
        sums.high[i] = 0;
        sums.low[i] = PL__HALF_LEVEL;
    }
    return sums;
}

static pl__sums pl__add(pl__sums sums, pl__pair pair, const int16_t *weights) {
    int i;
    for (i = 0; i < PL__GROUP; ++i) {
        sums.high[i] += weights[0] * pair.a[i] + weights[1] * pair.b[i];
        sums.low[i] += weights[2] * pair.a[i] + weights[3] * pair.b[i];
    }
    return sums;
}

static void pl__store(pl__sums sums, uint8_t *out, size_t count) {
    size_t i;
    for (i = 0; i < count; ++i) {
        const int64_t whole = (int64_t)sums.high[i] * ((int64_t)1 << PL__LOW) + sums.low[i];
        const int64_t level = whole < 0 ? 0 : whole >> PL__PRECISION; /* clipped before it is shifted */
        out[i] = (uint8_t)(level > 255 ? 255 : level);
    }
}
#endif

/* Weights in units of 2**-22 as halves: for each two taps high, high, low, low; an odd one out gets a zero beside it. */
static void pl__split(const int32_t *fixed, int32_t count, int16_t *halves) {
    int32_t t;
    for (t = 0; t < pl__even(count); ++t) {
        const int32_t weight = t < count ? fixed[t] : 0;
        /* The offset makes the division round down, so that the low half lies in -2**11 .. 2**11 - 1. */
        const int32_t up = (weight + (1 << (PL__PRECISION + 4)) + (1 << (PL__LOW - 1))) / (1 << PL__LOW) -
                           (1 << (PL__PRECISION + 4 - PL__LOW));
        int16_t *half = halves + (t / 2) * 4 + t % 2;
        half[0] = (int16_t)up;
        half[2] = (int16_t)(weight - up * (1 << PL__LOW));
    }
}

/* The weights across, and which samples they belong to. */
static void pl__across_weights(const pl__plan *plan, pl__reads *reads, int16_t *weights, double *exact,
                               int32_t *fixed) {
    int32_t i;
    for (i = 0; i < plan->across.keep; ++i) {
        int32_t first;
        const int32_t count = pl__weights(&plan->across, plan->across.from + i, &first, exact, fixed);
        reads[i].first = first - plan->across.first;
        reads[i].count = count;
        pl__split(fixed, count, weights + (size_t)i * 2u * (size_t)plan->taps);
    }
}

/* One output pixel: `count` pixels from `x` on, `step` bytes apart, times a row of weights. */
static void pl__pixel(const uint8_t *x, ptrdiff_t step, const int16_t *weights, int32_t count, uint8_t *rgb) {
    pl__sums sums = pl__start();
    int32_t t;
    for (t = 0; t < count; t += 2, x += 2 * step) {
        sums = pl__add(sums, pl__load(x, x + step), weights + 2 * t);
    }
    pl__store(sums, rgb, 3);
}

/* One row down: `count` rows, and one of zero weight if that is odd, times their weights. Two groups of samples share
 * each weight; at the end of the row the second may be the first once more. */
static void pl__down(const uint8_t *const *rows, const int16_t *weights, int32_t count, int32_t samples,
                     uint8_t *out) {
    int32_t i;
    for (i = 0; i < samples; i += 2 * PL__GROUP) {
        const int32_t left = samples - i;
        const int32_t j = left > PL__GROUP ? i + PL__GROUP : i;
        pl__sums sums = pl__start();
        pl__sums more = pl__start();
        int32_t t;
        for (t = 0; t < count; t += 2) {
            sums = pl__add(sums, pl__load(rows[t] + i, rows[t + 1] + i), weights + 2 * t);
            more = pl__add(more, pl__load(rows[t] + j, rows[t + 1] + j), weights + 2 * t);
        }
        pl__store(sums, out + i, left < PL__GROUP ? (size_t)left : PL__GROUP);
        pl__store(more, out + j, samples - j < PL__GROUP ? (size_t)(samples - j) : PL__GROUP);
    }
}

static void pl__fill(uint8_t *out, const pl_spec *spec) {
    const size_t bytes = (size_t)spec->height * (size_t)spec->width * 3u;
    size_t at;
    for (at = 0; at < bytes; at += 3) {
        memcpy(out + at, spec->pad_colour, 3);
    }
}

/* The workspace, cut up, and which upright rows are in the block. */
typedef struct pl__job {
    const pl__plan *plan;
    const uint8_t *matte;
    pl__reads *reads;
    int16_t *weights;
    uint8_t *block;
    int32_t block_from;
    int32_t block_rows;
} pl__job;

/* Whether the passes can read a row where it lies: its bytes are in order, and so many as may be read behind its
 * columns still belong to the picture. */
static int pl__in_place(const pl__plan *plan, int32_t row) {
    const pl__view *view = &plan->view;
    if (view->row < 0 || !((view->format == PL_RGB && view->column == 3) || (view->format == PL_RGBX && view->column == 4))) {
        return 0;
    }
    return row * view->row + plan->across.end * view->column + PL__BEHIND <=
           (view->height - 1) * view->row + view->width * view->column;
}

/* Returns the samples of one upright row, columns first..end-1 of the axis across, `*step` bytes apart. */
static const uint8_t *pl__row(pl__job *job, int32_t row, ptrdiff_t *step) {
    const pl__plan *plan = job->plan;
    const pl__view *view = &plan->view;
    const size_t width = (size_t)(plan->across.end - plan->across.first) * 3u;
    if (pl__in_place(plan, row)) {
        *step = view->column;
        return view->origin + row * view->row + plan->across.first * view->column;
    }
    if (row < job->block_from || row >= job->block_from + job->block_rows) {
        const int32_t left = plan->down.end - row;
        job->block_from = row;
        job->block_rows = left < plan->block_rows ? left : plan->block_rows;
        pl__fetch(view, job->matte, row, job->block_rows, plan->across.first, plan->across.end, job->block);
    }
    *step = 3;
    return job->block + (size_t)(row - job->block_from) * width;
}

/* Writes one upright row after the pass across. */
static void pl__across(pl__job *job, int32_t row, uint8_t *out) {
    const pl__plan *plan = job->plan;
    ptrdiff_t step;
    const uint8_t *x = pl__row(job, row, &step);
    int32_t i;
    if ((int64_t)plan->across.before != plan->across.after) {
        for (i = 0; i < plan->across.keep; ++i, out += 3) {
            pl__pixel(x + job->reads[i].first * step, step, job->weights + (size_t)i * 2u * (size_t)plan->taps,
                      job->reads[i].count, out);
        }
    } else if (step == 3) {
        memcpy(out, x, (size_t)plan->across.keep * 3u);
    } else {
        for (i = 0; i < plan->across.keep; ++i, x += step, out += 3) {
            memcpy(out, x, 3);
        }
    }
}

pl_status pl_preprocess(const pl_picture *picture, const pl_spec *spec, void *workspace, size_t workspace_bytes,
                        uint8_t *out) {
    pl__plan plan;
    pl__job job;
    uint8_t *base;
    uint8_t *ring;
    const uint8_t **rows;
    int16_t *halves;
    double *exact;
    int32_t *fixed;
    int32_t next;
    int32_t i;
    const pl_status status = pl_check_picture(picture, spec);
    if (status != PL_OK) {
        return status;
    }
    if (out == NULL) {
        return PL_ERROR_ARGUMENT;
    }
    pl__make_plan(&plan, picture, spec);
    if (workspace == NULL || workspace_bytes < plan.bytes) {
        return PL_ERROR_WORKSPACE;
    }
    base = (uint8_t *)workspace + (16u - (uintptr_t)workspace % 16u) % 16u;
    job.plan = &plan;
    job.matte = spec->matte;
    job.reads = (pl__reads *)(void *)(base + plan.at_reads);
    job.weights = (int16_t *)(void *)(base + plan.at_weights);
    job.block = base + plan.at_block;
    job.block_from = 0;
    job.block_rows = 0;
    ring = base + plan.at_ring;
    rows = (const uint8_t **)(void *)(base + plan.at_rows);
    halves = (int16_t *)(void *)(base + plan.at_halves);
    exact = (double *)(void *)(base + plan.at_exact);
    fixed = (int32_t *)(void *)(base + plan.at_fixed);
    /* What lies behind a row is read with zero weights, or summed for nothing: it must be a number, not a trap. */
    memset(job.block, 0, (size_t)(plan.at_ring - plan.at_block));
    memset(ring, 0, (size_t)(plan.at_rows - plan.at_ring));
    if (plan.across.before != plan.across.after) {
        pl__across_weights(&plan, job.reads, job.weights, exact, fixed);
    }
    if (spec->fit == PL_PAD) {
        pl__fill(out, spec);
    }
    next = plan.down.first;
    for (i = 0; i < plan.down.keep; ++i) {
        uint8_t *to = out + ((size_t)(plan.top + i) * (size_t)spec->width + (size_t)plan.left) * 3u;
        int32_t first;
        int32_t count;
        int32_t t;
        if ((int64_t)plan.down.before == plan.down.after) {
            pl__across(&job, plan.down.first + i, to);
            continue;
        }
        count = pl__weights(&plan.down, plan.down.from + i, &first, exact, fixed);
        for (next = next < first ? first : next; next < first + count; ++next) {
            pl__across(&job, next, ring + (size_t)(next % plan.down.taps) * (size_t)plan.pitch);
        }
        for (t = 0; t < pl__even(count); ++t) {
            rows[t] = ring + (size_t)((first + t) % plan.down.taps) * (size_t)plan.pitch;
        }
        pl__split(fixed, count, halves);
        pl__down(rows, halves, count, plan.across.keep * 3, to);
    }
    return PL_OK;
}

#endif /* POCKETLENS_PREPROCESS_IMPLEMENTATION */
