// Attention of decoders.
//
// Keys and values are kept in blocks of tokens (Kwon et al., 2023, "PagedAttention"): a layer has a tensor of keys and one
// of values, `[blocks, key heads, tokens of a block, values of a head]`. Attention goes over a sequence's blocks once, with
// the greatest score so far (Dao, 2023); where there are few queries, several thread blocks share the blocks of a sequence
// and what they made is put together afterwards (Dao et al., 2023, "Flash-Decoding").

#pragma once
#include "tensor.cuh"

// Tokens of a block of keys: one for each lane.
#define BLOCK 32
#define THREADS 128
#define WARPS (THREADS / 32)
#define HEAD_MAX 256

// Some tokens of a sequence that come one after the other.
struct Tile {
    // The first one's row in the step, how many they are, the first one's position, and where the sequence's blocks begin
    // in the table.
    uint32_t row, count, position, table;
};

// What is the same in all of a model's heads.
struct Heads {
    int heads, key_heads, size;
};

struct Sight {
    // How many tokens back a query sees, itself counted; 0 without limit.
    int window;
    float scale;
    // What no score can exceed, by tanh; 0 without.
    float cap;

    __device__ float score(float product, int query, int key) const {
        if (key > query || (window != 0 && key + window <= query)) return -INFINITY;
        return cap == 0 ? product : tanhf(product / cap) * cap;
    }
};

// What a thread block has of a tile: some heads of a group, which make a row of each token, and some of the blocks of keys.
struct Part {
    Tile tile;
    int key_head, first_head, heads, asking, last, begin, end;

    __device__ Part(const Tile &tile, Heads all, Sight sight, int rows) : tile(tile) {
        const int group = all.heads / all.key_heads;
        // As many heads of a group as there are rows for.
        const int part = min(group, rows), parts = (group + part - 1) / part;
        key_head = blockIdx.y / parts, first_head = key_head * group + blockIdx.y % parts * part;
        heads = min(part, (key_head + 1) * group - first_head);
        asking = tile.count * heads;
        last = tile.position + tile.count;
        const int first = sight.window == 0 ? 0 : max(0, (int)tile.position + 1 - sight.window);
        const int share = (last - first / BLOCK * BLOCK + BLOCK * gridDim.z - 1) / (BLOCK * gridDim.z);
        begin = first / BLOCK + blockIdx.z * share, end = min((last + BLOCK - 1) / BLOCK, begin + share);
    }

    __device__ int position(int row) const { return tile.position + row / heads; }
    __device__ int head(int row) const { return first_head + row % heads; }
    // Among the heads of all tokens.
    __device__ size_t place(int row, Heads all) const {
        return (size_t)(tile.row + row / heads) * all.heads + head(row);
    }
};

// What a share of a sequence's blocks came to, for one query and head: the greatest score and the sum of weights.
struct Share {
    float most, sum;

    // What sums of values are multiplied by in the end.
    __device__ float factor(const float *sinks, int head) const {
        const float sink = sinks == nullptr ? -INFINITY : sinks[head], greatest = fmaxf(most, sink);
        const float factor = __expf(most - greatest);
        return factor / (sum * factor + __expf(sink - greatest));
    }
};

// Of 16 bytes.
template <typename T> struct Vector {
    static constexpr int COUNT = 16 / sizeof(T);
};

// `[tiles, heads of a tile, shares]` thread blocks. A warp takes rows `warp, warp + 4, …` of the tile; in scores a lane stands
// for a key, in sums for some of a head's values. `SIZE` is what a head is padded to in the loops, `OWN` a warp's rows.
template <typename T, int SIZE, int OWN>
__device__ void attend(const T *queries, const T *keys, const T *values, const Tile *tiles, const uint32_t *tables,
                       const float *sinks, T *output, float *partial, Share *shares, int rows, Heads all, Sight sight) {
    constexpr int EACH = Vector<T>::COUNT;
    constexpr int STRIDE = SIZE + EACH;
    constexpr int LOADS = (BLOCK * SIZE / EACH + THREADS - 1) / THREADS;
    constexpr int SUMS = SIZE / 32;
    __shared__ __align__(16) T kept[BLOCK * STRIDE];
    __shared__ float asked[OWN * WARPS][SIZE];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, size = all.size;
    const Part part(tiles[blockIdx.x], all, sight, OWN * WARPS);

    for (int at = threadIdx.x; at < part.asking * SIZE; at += THREADS) {
        const int row = at / SIZE, column = at % SIZE;
        const T *from = queries + part.place(row, all) * size + column;
        asked[row][column] = column < size ? to_float(*from) * sight.scale : 0;
    }
    float sums[OWN][SUMS], most[OWN], total[OWN];
#pragma unroll
    for (int own = 0; own < OWN; own++) {
        most[own] = -INFINITY, total[own] = 0;
#pragma unroll
        for (int at = 0; at < SUMS; at++) sums[own][at] = 0;
    }
    const int vectors = BLOCK * size / EACH;
    auto fetch = [&](const T *from, int block, uint4 loaded[LOADS]) {
        const uint4 *page = reinterpret_cast<const uint4 *>(
            from + ((size_t)tables[part.tile.table + block] * all.key_heads + part.key_head) * BLOCK * size);
#pragma unroll
        for (int at = 0; at < LOADS; at++) {
            const int vector = at * THREADS + threadIdx.x;
            if (vector < vectors) loaded[at] = page[vector];
        }
    };
    auto keep = [&](const uint4 loaded[LOADS]) {
#pragma unroll
        for (int at = 0; at < LOADS; at++) {
            const int vector = at * THREADS + threadIdx.x;
            const int row = vector * EACH / size, column = vector * EACH % size;
            if (vector < vectors) *reinterpret_cast<uint4 *>(kept + row * STRIDE + column) = loaded[at];
        }
    };
    uint4 next_keys[LOADS], next_values[LOADS];
    if (part.begin < part.end) fetch(keys, part.begin, next_keys);
    for (int block = part.begin; block < part.end; block++) {
        __syncthreads();
        keep(next_keys);
        fetch(values, block, next_values);
        __syncthreads();
        float scores[OWN];
#pragma unroll
        for (int own = 0; own < OWN; own++) scores[own] = 0;
        for (int column = 0; column < size; column += EACH) {
            T own_key[EACH];
            *reinterpret_cast<uint4 *>(own_key) = *reinterpret_cast<const uint4 *>(kept + lane * STRIDE + column);
#pragma unroll
            for (int own = 0; own < OWN; own++) {
                const float *query = asked[own * WARPS + warp] + column;
#pragma unroll
                for (int at = 0; at < EACH; at++) scores[own] += query[at] * to_float(own_key[at]);
            }
        }
        const int key = block * BLOCK + lane;
#pragma unroll
        for (int own = 0; own < OWN; own++) {
            const int row = own * WARPS + warp;
            if (row < part.asking) {
                const float score = sight.score(scores[own], part.position(row), key);
                const float greatest = fmaxf(most[own], warp_max(score));
                // Nothing may have been seen yet.
                const float factor = greatest == -INFINITY ? 1 : __expf(most[own] - greatest);
                scores[own] = greatest == -INFINITY ? 0 : __expf(score - greatest);
                most[own] = greatest;
                total[own] = total[own] * factor + warp_sum(scores[own]);
#pragma unroll
                for (int at = 0; at < SUMS; at++) sums[own][at] *= factor;
            } else {
                scores[own] = 0;
            }
        }
        __syncthreads();
        keep(next_values);
        if (block + 1 < part.end) fetch(keys, block + 1, next_keys);
        __syncthreads();
        // What lies behind the last token belongs to nobody.
        const int filled = min(BLOCK, part.last - block * BLOCK);
        for (int token = 0; token < filled; token++) {
            float value[SUMS];
#pragma unroll
            for (int at = 0; at < SUMS; at++) {
                const int column = at * 32 + lane;
                value[at] = column < size ? to_float(kept[token * STRIDE + column]) : 0;
            }
#pragma unroll
            for (int own = 0; own < OWN; own++) {
                const float weight = __shfl_sync(FULL, scores[own], token);
#pragma unroll
                for (int at = 0; at < SUMS; at++) sums[own][at] += weight * value[at];
            }
        }
    }
#pragma unroll
    for (int own = 0; own < OWN; own++) {
        const int row = own * WARPS + warp;
        if (row >= part.asking) continue;
        const size_t to = part.place(row, all), share = (size_t)blockIdx.z * rows * all.heads + to;
        const Share made = {most[own], total[own]};
        const float factor = partial == nullptr ? made.factor(sinks, part.head(row)) : 1;
        if (partial != nullptr && lane == 0) shares[share] = made;
#pragma unroll
        for (int at = 0; at < SUMS; at++) {
            const int column = at * 32 + lane;
            if (column >= size) continue;
            if (partial == nullptr) {
                store(output + to * size + column, sums[own][at] * factor);
            } else {
                partial[share * size + column] = sums[own][at];
            }
        }
    }
}

// As `attend`, on tensor cores: a warp takes 16 rows of the tile, of which a lane holds two, 8 apart.
template <typename T, int SIZE>
__device__ void attend_many(const T *queries, const T *keys, const T *values, const Tile *tiles, const uint32_t *tables,
                            const float *sinks, T *output, float *partial, Share *shares, int rows, Heads all,
                            Sight sight) {
    // Rows stand so far apart that those a warp reads at once lie in different banks.
    constexpr int STRIDE = SIZE + 8, EACH = 8, PARTS = SIZE / EACH;
    __shared__ __align__(16) T kept_keys[BLOCK * STRIDE];
    __shared__ __align__(16) T kept_values[BLOCK * STRIDE];
    const int lane = threadIdx.x % 32, size = all.size;
    const Part part(tiles[blockIdx.x], all, sight, 16 * WARPS);
    const int first_row = threadIdx.x / 32 * 16 + lane / 4, first_column = lane % 4 * 2;

    uint32_t asked[SIZE / 16][4];
#pragma unroll
    for (int at = 0; at < SIZE / 16; at++) {
#pragma unroll
        for (int of_four = 0; of_four < 4; of_four++) {
            const int row = first_row + of_four % 2 * 8, column = at * 16 + of_four / 2 * 8 + first_column;
            const bool is_there = row < part.asking && column < size;
            const T *from = queries + part.place(row, all) * size + column;
            asked[at][of_four] = is_there ? *reinterpret_cast<const uint32_t *>(from) : 0;
        }
    }
    float sums[PARTS][4] = {}, most[2] = {-INFINITY, -INFINITY}, total[2] = {0, 0};

    for (int block = part.begin; block < part.end; block++) {
        __syncthreads();
        const size_t page = ((size_t)tables[part.tile.table + block] * all.key_heads + part.key_head) * BLOCK * size;
        for (int at = threadIdx.x; at < BLOCK * PARTS; at += THREADS) {
            const int token = at / PARTS, column = at % PARTS * EACH;
            uint4 key = {0, 0, 0, 0}, value = {0, 0, 0, 0};
            // What lies behind the last token belongs to nobody.
            if (column < size && block * BLOCK + token < part.last) {
                key = *reinterpret_cast<const uint4 *>(keys + page + token * size + column);
                value = *reinterpret_cast<const uint4 *>(values + page + token * size + column);
            }
            *reinterpret_cast<uint4 *>(kept_keys + token * STRIDE + column) = key;
            *reinterpret_cast<uint4 *>(kept_values + token * STRIDE + column) = value;
        }
        __syncthreads();

        float scores[BLOCK / 8][4] = {};
#pragma unroll
        for (int at = 0; at < SIZE / 16; at++) {
#pragma unroll
            for (int eight = 0; eight < BLOCK / 8; eight++) {
                const T *from = kept_keys + (eight * 8 + lane / 4) * STRIDE + at * 16 + first_column;
                multiply<T>(scores[eight], asked[at], *reinterpret_cast<const uint32_t *>(from),
                            *reinterpret_cast<const uint32_t *>(from + 8));
            }
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int query = part.position(first_row + half * 8);
            float greatest = most[half], sum = 0;
#pragma unroll
            for (int eight = 0; eight < BLOCK / 8; eight++) {
#pragma unroll
                for (int at = half * 2; at < half * 2 + 2; at++) {
                    const int key = block * BLOCK + eight * 8 + first_column + at % 2;
                    scores[eight][at] = sight.score(scores[eight][at] * sight.scale, query, key);
                    greatest = fmaxf(greatest, scores[eight][at]);
                }
            }
            greatest = fmaxf(greatest, __shfl_xor_sync(FULL, greatest, 1));
            greatest = fmaxf(greatest, __shfl_xor_sync(FULL, greatest, 2));
            // Nothing may have been seen yet.
            const float base = greatest == -INFINITY ? 0 : greatest, factor = __expf(most[half] - base);
            most[half] = greatest;
#pragma unroll
            for (int eight = 0; eight < BLOCK / 8; eight++) {
#pragma unroll
                for (int at = half * 2; at < half * 2 + 2; at++) {
                    scores[eight][at] = __expf(scores[eight][at] - base);
                    sum += scores[eight][at];
                }
            }
            total[half] = total[half] * factor + sum;
#pragma unroll
            for (int at = 0; at < PARTS; at++) sums[at][half * 2] *= factor, sums[at][half * 2 + 1] *= factor;
        }
#pragma unroll
        for (int sixteen = 0; sixteen < BLOCK / 16; sixteen++) {
            const float *left = scores[sixteen * 2], *right = scores[sixteen * 2 + 1];
            const uint32_t weights[4] = {pair<T>(left[0], left[1]), pair<T>(left[2], left[3]),
                                         pair<T>(right[0], right[1]), pair<T>(right[2], right[3])};
#pragma unroll
            for (int at = 0; at < SIZE / 16; at++) {
                uint32_t columns[4];
                load_columns(columns, kept_values + (sixteen * 16 + lane % 16) * STRIDE + at * 16 + lane / 16 * 8);
                multiply<T>(sums[at * 2], weights, columns[0], columns[1]);
                multiply<T>(sums[at * 2 + 1], weights, columns[2], columns[3]);
            }
        }
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int row = first_row + half * 8;
        float whole = total[half];
        whole += __shfl_xor_sync(FULL, whole, 1);
        whole += __shfl_xor_sync(FULL, whole, 2);
        if (row >= part.asking) continue;
        const size_t to = part.place(row, all), share = (size_t)blockIdx.z * rows * all.heads + to;
        const Share made = {most[half], whole};
        const float factor = partial == nullptr ? made.factor(sinks, part.head(row)) : 1;
        if (partial != nullptr && lane % 4 == 0) shares[share] = made;
#pragma unroll
        for (int at = 0; at < PARTS; at++) {
#pragma unroll
            for (int next = 0; next < 2; next++) {
                const int column = at * 8 + first_column + next;
                if (column >= size) continue;
                const float sum = sums[at][half * 2 + next] * factor;
                if (partial == nullptr) {
                    store(output + to * size + column, sum);
                } else {
                    partial[share * size + column] = sum;
                }
            }
        }
    }
}

// Puts the shares of each query and head together.
template <typename T>
__device__ void gather(const float *partial, const Share *shares, const float *sinks, T *output, int count, int heads,
                       int size) {
    const size_t one = blockIdx.x, all = gridDim.x;
    const float sink = sinks == nullptr ? -INFINITY : sinks[one % heads];
    float most = sink, total = 0;
    for (int share = 0; share < count; share++) most = fmaxf(most, shares[share * all + one].most);
    for (int share = 0; share < count; share++) {
        total += shares[share * all + one].sum * __expf(shares[share * all + one].most - most);
    }
    total += __expf(sink - most);
    for (int column = threadIdx.x; column < size; column += blockDim.x) {
        float sum = 0;
        for (int share = 0; share < count; share++) {
            sum += partial[(share * all + one) * size + column] * __expf(shares[share * all + one].most - most);
        }
        store(output + one * size + column, sum / total);
    }
}
