// Decoders on a GPU, over the packed rows of a step. `decoder.rs` launches what stands here.
//
// Keys and values are kept in blocks of tokens (Kwon et al., 2023, "PagedAttention"): a layer has a tensor of keys and one
// of values, `[blocks, key heads, tokens of a block, values of a head]`. Attention goes over a sequence's blocks once, with
// the greatest score so far (Dao, 2023); where there are few queries, several thread blocks share the blocks of a sequence
// and what they made is put together afterwards (Dao et al., 2023, "Flash-Decoding").

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

// A norm's weights; there is none where `weight` is null.
struct Norm {
    const float *weight, *bias;
    float epsilon;
    int centred;
};

__device__ inline float block_sum(float value) {
    __shared__ float sums[32];
    value = warp_sum(value);
    __syncthreads();
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = value;
    __syncthreads();
    float total = 0;
    for (int warp = 0; warp < blockDim.x / 32; warp++) total += sums[warp];
    return total;
}

// The vectors of words, as many as there are rows, with those of their positions.
template <typename T>
__device__ void embed(const T *words, const T *places, const uint32_t *tokens, const uint32_t *positions, float *hidden,
                      int width, float scale) {
    const int row = blockIdx.x;
    const T *word = words + (size_t)tokens[row] * width;
    const T *place = places == nullptr ? nullptr : places + (size_t)positions[row] * width;
    for (int column = threadIdx.x; column < width; column += blockDim.x) {
        float value = to_float(word[column]) * scale;
        hidden[(size_t)row * width + column] = place == nullptr ? value : value + to_float(place[column]);
    }
}

// `hidden += first(made + bias)`, and `output = second(hidden)`, a row for each thread block.
template <typename T>
__device__ void join(float *hidden, const T *made, const T *bias, Norm first, Norm second, T *output, int width) {
    hidden += (size_t)blockIdx.x * width;
    output += (size_t)blockIdx.x * width;
    if (made != nullptr) {
        made += (size_t)blockIdx.x * width;
        float mean = 0, factor = 1;
        if (first.weight != nullptr) {
            float total = 0, squares = 0;
            for (int column = threadIdx.x; column < width; column += blockDim.x) {
                float value = to_float(made[column]) + (bias == nullptr ? 0 : to_float(bias[column]));
                total += value, squares += value * value;
            }
            squares = block_sum(squares) / width;
            mean = first.centred ? block_sum(total) / width : 0;
            factor = rsqrtf(squares - mean * mean + first.epsilon);
        }
        for (int column = threadIdx.x; column < width; column += blockDim.x) {
            float value = to_float(made[column]) + (bias == nullptr ? 0 : to_float(bias[column]));
            if (first.weight != nullptr) {
                value = (value - mean) * factor * first.weight[column] + (first.bias == nullptr ? 0 : first.bias[column]);
            }
            hidden[column] += value;
        }
    }
    // A thread reads again what it has written itself.
    float mean = 0;
    if (second.centred) {
        float total = 0;
        for (int column = threadIdx.x; column < width; column += blockDim.x) total += hidden[column];
        mean = block_sum(total) / width;
    }
    float squares = 0;
    for (int column = threadIdx.x; column < width; column += blockDim.x) {
        float value = hidden[column] - mean;
        squares += value * value;
    }
    const float factor = rsqrtf(block_sum(squares) / width + second.epsilon);
    for (int column = threadIdx.x; column < width; column += blockDim.x) {
        float value = (hidden[column] - mean) * factor * second.weight[column];
        store(output + column, second.bias == nullptr ? value : value + second.bias[column]);
    }
}

// Heads of queries and keys are normed and turned; queries are written in rows, keys and values to their blocks. A warp
// takes a head.
template <typename T>
__device__ void place(const T *rows, const T *bias, Norm query_norm, Norm key_norm, const float *cosines, const float *sines,
                      const uint32_t *positions, const uint32_t *slots, T *queries, T *keys, T *values, Heads all) {
    __shared__ float buffers[WARPS][HEAD_MAX];
    const int lane = threadIdx.x % 32, row = blockIdx.x, head = blockIdx.y * WARPS + threadIdx.x / 32;
    const int size = all.size, count = all.heads + 2 * all.key_heads;
    if (head >= count) return;
    float *buffer = buffers[threadIdx.x / 32];
    const T *from = rows + ((size_t)row * count + head) * size;
    const T *added = bias == nullptr ? nullptr : bias + head * size;
    const bool is_query = head < all.heads, is_value = head >= all.heads + all.key_heads;
    const Norm norm = is_query ? query_norm : key_norm;
    float total = 0;
    for (int at = lane; at < size; at += 32) {
        float value = to_float(from[at]) + (added == nullptr ? 0 : to_float(added[at]));
        total += value;
        buffer[at] = value;
    }
    if (!is_value && norm.weight != nullptr) {
        const float mean = norm.centred ? warp_sum(total) / size : 0;
        float squares = 0;
        for (int at = lane; at < size; at += 32) squares += (buffer[at] - mean) * (buffer[at] - mean);
        const float factor = rsqrtf(warp_sum(squares) / size + norm.epsilon);
        for (int at = lane; at < size; at += 32) {
            float value = (buffer[at] - mean) * factor * norm.weight[at];
            buffer[at] = norm.bias == nullptr ? value : value + norm.bias[at];
        }
    }
    __syncwarp();
    T *to;
    if (is_query) {
        to = queries + ((size_t)row * all.heads + head) * size;
    } else {
        const int kept = (head - all.heads) % all.key_heads;
        const size_t block = slots[row] / BLOCK, token = slots[row] % BLOCK;
        to = (is_value ? values : keys) + ((block * all.key_heads + kept) * BLOCK + token) * size;
    }
    const int half = size / 2;
    for (int at = lane; at < size; at += 32) {
        float value = buffer[at];
        if (!is_value && cosines != nullptr) {
            const size_t angle = (size_t)positions[row] * half + at % half;
            const float other = at < half ? -buffer[at + half] : buffer[at - half];
            value = value * cosines[angle] + other * sines[angle];
        }
        store(to + at, value);
    }
}

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

// `f(x + bias)` of each row; where it is gated (1), times the other half of the row; where it is clamped (2), as gpt-oss does.
template <typename T>
__device__ void activate(const T *rows, const T *bias, T *output, int width, int activation, int gated, float alpha,
                         float limit) {
    const int output_width = gated ? width / 2 : width;
    rows += (size_t)blockIdx.x * width;
    output += (size_t)blockIdx.x * output_width;
    const int column = blockIdx.y * blockDim.x + threadIdx.x;
    if (column >= output_width) return;
    auto input = [&](int at) { return to_float(rows[at]) + (bias == nullptr ? 0 : to_float(bias[at])); };
    float value = input(column);
    if (gated == 2) {
        value = fminf(value, limit);
        value = value / (1 + __expf(-alpha * value)) * (fminf(fmaxf(input(output_width + column), -limit), limit) + 1);
    } else {
        value = activated(value, activation);
        if (gated == 1) value *= input(output_width + column);
    }
    store(output + column, value);
}

// Scores of rows for each token, in f32. Where there is a cap none exceeds it, by tanh.
template <typename T>
__device__ void score(const T *rows, const T *bias, float *scores, int width, float cap) {
    const int column = blockIdx.y * blockDim.x + threadIdx.x;
    if (column >= width) return;
    const size_t at = (size_t)blockIdx.x * width + column;
    const float value = to_float(rows[at]) + (bias == nullptr ? 0 : to_float(bias[column]));
    scores[at] = cap == 0 ? value : tanhf(value / cap) * cap;
}

// How a row's next token is drawn, as `sampling.rs` does it: not at all (0), as the one with the highest score (1), or by
// weights (2), of which those below `least` are nothing, where a part of all of them ends.
struct Draw {
    uint32_t way;
    float inverse_temperature, least;
    uint32_t unused;
    double part;

    __device__ float weight(float score, float most) const {
        const float weight = __expf((score - most) * inverse_temperature);
        return weight >= least ? weight : 0;
    }
};

// Weights whose sum is made at once, by a warp, and the most that there are of them.
#define CHUNK 512
#define CHUNKS_MAX 1024

// A thread block draws for a row.
__device__ void draw(const float *scores, const Draw *draws, uint32_t *tokens, int width) {
    __shared__ float highest[32];
    __shared__ int places[32];
    __shared__ double sums[CHUNKS_MAX];
    __shared__ float weights[CHUNK];
    __shared__ int chosen;
    __shared__ double left;
    const Draw how = draws[blockIdx.x];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    if (how.way == 0) return;
    scores += (size_t)blockIdx.x * width;

    float most = -INFINITY;
    int place = 0;
    auto take = [&](float score, int at) {
        if (score > most || (score == most && at < place)) most = score, place = at;
    };
    for (int at = threadIdx.x; at < width; at += blockDim.x) take(scores[at], at);
    for (int step = 16; step > 0; step /= 2) {
        const float score = __shfl_xor_sync(FULL, most, step);
        take(score, __shfl_xor_sync(FULL, place, step));
    }
    if (lane == 0) highest[warp] = most, places[warp] = place;
    __syncthreads();
    for (int other = 0; other < warps; other++) take(highest[other], places[other]);
    if (how.way == 1) {
        if (threadIdx.x == 0) tokens[blockIdx.x] = place;
        return;
    }

    const int chunks = (width + CHUNK - 1) / CHUNK;
    for (int chunk = warp; chunk < chunks; chunk += warps) {
        double sum = 0;
        for (int at = chunk * CHUNK + lane; at < min(width, (chunk + 1) * CHUNK); at += 32) {
            sum += how.weight(scores[at], most);
        }
        for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(FULL, sum, step);
        if (lane == 0) sums[chunk] = sum;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        double whole = 0;
        for (int chunk = 0; chunk < chunks; chunk++) whole += sums[chunk];
        left = whole * how.part;
        int at = 0, last = 0;
        double before = 0;
        for (; at < chunks && left >= sums[at]; at++) {
            if (sums[at] > 0) last = at, before = left;
            left -= sums[at];
        }
        // Sums in another order are not quite the same: then it is the last one that there is.
        if (at == chunks) at = last, left = before;
        chosen = at;
    }
    __syncthreads();
    const int first = chosen * CHUNK, count = min(CHUNK, width - first);
    for (int at = threadIdx.x; at < count; at += blockDim.x) weights[at] = how.weight(scores[first + at], most);
    __syncthreads();
    if (threadIdx.x == 0) {
        int token = 0;
        double rest = left;
        for (int at = 0; at < count && rest >= 0; at++) {
            if (weights[at] > 0) token = at;
            rest -= weights[at];
        }
        tokens[blockIdx.x] = first + token;
    }
}

extern "C" __global__ void draw_f32(const float *scores, const Draw *draws, uint32_t *tokens, int width) {
    draw(scores, draws, tokens, width);
}

#define ATTEND(T, NAME, SIZE, OWN) ATTEND_BY((attend<T, SIZE, OWN>), T, attend_##NAME##_##SIZE##_##OWN)
#define ATTEND_MANY(T, NAME, SIZE) ATTEND_BY((attend_many<T, SIZE>), T, attend_##NAME##_##SIZE##_16)
#define ATTEND_BY(WAY, T, NAME)                                                                                        \
    extern "C" __global__ void __launch_bounds__(THREADS) NAME(                                                        \
        const T *queries, const T *keys, const T *values, const Tile *tiles, const uint32_t *tables,                   \
        const float *sinks, T *output, float *partial, Share *shares, int rows, int heads, int key_heads, int size,    \
        int window, float scale, float cap) {                                                                          \
        WAY(queries, keys, values, tiles, tables, sinks, output, partial, shares, rows,                                \
            Heads{heads, key_heads, size}, Sight{window, scale, cap});                                                 \
    }
#define ALL(T, NAME)                                                                                                   \
    extern "C" __global__ void embed_##NAME(const T *words, const T *places, const uint32_t *tokens,                   \
                                            const uint32_t *positions, float *hidden, int width, float scale) {        \
        embed<T>(words, places, tokens, positions, hidden, width, scale);                                              \
    }                                                                                                                  \
    extern "C" __global__ void join_##NAME(float *hidden, const T *made, const T *bias, const float *first,            \
                                           const float *first_bias, float first_epsilon, int first_centred,            \
                                           const float *second, const float *second_bias, float second_epsilon,        \
                                           int second_centred, T *output, int width) {                                 \
        join<T>(hidden, made, bias, Norm{first, first_bias, first_epsilon, first_centred},                             \
                Norm{second, second_bias, second_epsilon, second_centred}, output, width);                             \
    }                                                                                                                  \
    extern "C" __global__ void place_##NAME(                                                                           \
        const T *rows, const T *bias, const float *query, const float *query_bias, float query_epsilon,                \
        int query_centred, const float *key, const float *key_bias, float key_epsilon, int key_centred,                \
        const float *cosines, const float *sines, const uint32_t *positions, const uint32_t *slots, T *queries,        \
        T *keys, T *values, int heads, int key_heads, int size) {                                                      \
        place<T>(rows, bias, Norm{query, query_bias, query_epsilon, query_centred},                                    \
                 Norm{key, key_bias, key_epsilon, key_centred}, cosines, sines, positions, slots, queries, keys,       \
                 values, Heads{heads, key_heads, size});                                                               \
    }                                                                                                                  \
    extern "C" __global__ void gather_##NAME(const float *partial, const Share *shares, const float *sinks,            \
                                             T *output, int count, int heads, int size) {                              \
        gather<T>(partial, shares, sinks, output, count, heads, size);                                                 \
    }                                                                                                                  \
    extern "C" __global__ void activate_##NAME(const T *rows, const T *bias, T *output, int width, int activation,     \
                                               int gated, float alpha, float limit) {                                  \
        activate<T>(rows, bias, output, width, activation, gated, alpha, limit);                                       \
    }                                                                                                                  \
    extern "C" __global__ void score_##NAME(const T *rows, const T *bias, float *scores, int width, float cap) {       \
        score<T>(rows, bias, scores, width, cap);                                                                      \
    }                                                                                                                  \
    ATTEND(T, NAME, 64, 1)                                                                                             \
    ATTEND(T, NAME, 64, 2)                                                                                             \
    ATTEND(T, NAME, 64, 4)                                                                                             \
    ATTEND(T, NAME, 128, 1)                                                                                            \
    ATTEND(T, NAME, 128, 2)                                                                                            \
    ATTEND(T, NAME, 128, 4)                                                                                            \
    ATTEND(T, NAME, 256, 1)
#define HALF(T, NAME)                                                                                                  \
    ALL(T, NAME)                                                                                                       \
    ATTEND_MANY(T, NAME, 64)                                                                                           \
    ATTEND_MANY(T, NAME, 128)                                                                                          \
    ATTEND_MANY(T, NAME, 256)
ALL(float, f32)
HALF(__half, f16)
HALF(__nv_bfloat16, bf16)
