/* What an indexer picks for tokens that are decoded (models/indexer.py): every key of a sequence is scored, the n_kept
 * highest stay, of equal ones the first.
 *
 * The indexer's keys lie in pages, turned, [d][PAGE], so that a page's scores are a product of the tile. They are narrow:
 * reading them from memory is what takes time. The lowest score that stays is found by counting, 11 bits at a time. */
#include "tile.h"

/* A number that is ordered as the float is; both zeros are one. */
INLINE uint32_t rank_of(float x) {
    uint32_t bits;
    x += 0.0f;
    memcpy(&bits, &x, 4);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

/* Ranks of a page's scores, sum over heads of weight ReLU(q k). */
INLINE void rank_page(i64 n_heads, i64 d, const float *q, const float *weight, const float *page, uint32_t *ranks) {
    float products[MR * NR], scores[NR];
    for (i64 j = 0; j < PAGE; j += NR) {
        vec sum[NV] = {{0}};
        for (i64 first = 0; first < n_heads; first += MR) {
            i64 count = least(MR, n_heads - first);
            tile(count, d, q + first * d, d, 1, page + j, PAGE, products, NR, 0);
            for (i64 h = 0; h < count; h++)
                for (int v = 0; v < NV; v++) {
                    vec x = load(products + h * NR + v * VL);
                    sum[v] += weight[first + h] * (vec)((ivec)x & (x > 0));
                }
        }
        for (int v = 0; v < NV; v++) store(scores + v * VL, sum[v]);
        for (int i = 0; i < NR; i++) ranks[j + i] = rank_of(scores[i]);
    }
}

/* The n_kept-th highest of n ranks, and how many of that rank stay. */
static uint32_t lowest_kept(const uint32_t *ranks, i64 n, i64 n_kept, i64 *n_level) {
    const int shifts[] = {21, 10, 0}, widths[] = {11, 11, 10};
    uint32_t known = 0, mask = 0;
    i64 wanted = n_kept;
    for (int pass = 0; pass < 3; pass++) {
        int32_t counts[1 << 11] = {0};
        uint32_t most = (1u << widths[pass]) - 1, digit = most;
        for (i64 i = 0; i < n; i++)
            if ((ranks[i] & mask) == known) counts[ranks[i] >> shifts[pass] & most]++;
        while (counts[digit] < wanted) wanted -= counts[digit--];
        known |= digit << shifts[pass];
        mask |= most << shifts[pass];
    }
    *n_level = wanted;
    return known;
}

/* For each of m queries q [M, I, d] with weights [M, I], the cells that it keeps of the first n_keys in its table's pages,
 * in order; all of them where there are no more than n_kept. A cell is its page's number times PAGE, and its slot. */
API void zifio_pick(i64 m, i64 n_heads, i64 d, i64 n_kept, const float *q, const float *weight, const int32_t *table,
                    i64 table_width, const int32_t *n_keys, const float *keys, int64_t *cells) {
#pragma omp parallel for schedule(dynamic) if (m > 1)
    for (i64 row = 0; row < m; row++) {
        const int32_t *pages = table + row * table_width;
        i64 n = n_keys[row], n_pages = up(n, PAGE) / PAGE, n_level = n, n_out = 0;
        uint32_t lowest = 0, *ranks = (uint32_t *)scratch(1, n_pages * PAGE);
        memset(ranks, 0, 4 * n_pages * PAGE);
        for (i64 p = 0; n > n_kept && p < n_pages; p++) {
            if (p + 1 < n_pages) ahead(keys + pages[p + 1] * d * PAGE, d * PAGE);
            rank_page(n_heads, d, q + row * n_heads * d, weight + row * n_heads, keys + pages[p] * d * PAGE, ranks + p * PAGE);
        }
        if (n > n_kept) lowest = lowest_kept(ranks, n, n_kept, &n_level);
        for (i64 i = 0; i < n && n_out < n_kept; i++) {
            if (ranks[i] < lowest || (ranks[i] == lowest && !n_level)) continue;
            n_level -= ranks[i] == lowest;
            cells[row * n_kept + n_out++] = (i64)pages[i / PAGE] * PAGE + i % PAGE;
        }
    }
}
