/* A code for every drawing of a batch: the last product of the image head, classifier-free guidance, the draw, and the
 * log-probability under the prompt alone, in one call. The bits are those of the same operators one after the other. */
#include "tile.h"

#pragma STDC FP_CONTRACT OFF
#if defined(__GNUC__) && !defined(__clang__)
#define UNFUSED __attribute__((noinline, optimize("fp-contract=off")))
#else
#define UNFUSED __attribute__((noinline))
#endif

void zifio_draw(i64 n, i64 d, const float *logits, i64 ld, const float *scale, const double *uniform, i64 *token, float *logp);
void zifio_logp(i64 n, i64 d, const float *logits, i64 ld, const float *scale, const i64 *target, float *logp);

/* u + scale (c - u), each step rounded by itself, as torch does it. */
static UNFUSED void guide(i64 d, const float *c, const float *u, float scale, float *out) {
    for (i64 i = 0; i < d; i++) out[i] = u[i] + scale * (c[i] - u[i]);
}

/* Of m rows of the head's hidden layer [m, k] and n drawings among them: row own[i] draws, guided by row blank[i], or by
 * nobody where that is -1. token[own[i]], token[blank[i]] and logp[own[i]] are written; `logits` is room for [m, d]. */
API void zifio_draw_codes(i64 m, i64 d, i64 k, const float *hidden, const float *packed, const float *bias, i64 n,
                          const i64 *own, const i64 *blank, const float *guidance, const float *scale,
                          const double *uniform, i64 first_code, float *logits, i64 *token, float *logp) {
    products_packed(m, k, hidden, k, &(Columns){d, packed, logits}, 1);
    for (i64 row = 0; bias && row < m; row++)
        for (i64 i = 0; i < d; i++) logits[row * d + i] += bias[i];
#pragma omp parallel for schedule(static) if (n * d > 16384)
    for (i64 i = 0; i < n; i++) {
        const float *mine = logits + own[i] * d;
        i64 code;
        if (blank[i] < 0) {
            zifio_draw(1, d, mine, d, scale + i, uniform + i, &code, logp + own[i]);
        } else {
            float *weighed = scratch(2, d);
            guide(d, mine, logits + blank[i] * d, guidance[i], weighed);
            zifio_draw(1, d, weighed, d, scale + i, uniform + i, &code, logp + own[i]);
            zifio_logp(1, d, mine, d, scale + i, &code, logp + own[i]);
            token[blank[i]] = first_code + code;
        }
        token[own[i]] = first_code + code;
    }
}
