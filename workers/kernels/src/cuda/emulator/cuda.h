// What the kernels take from CUDA, for a processor: as much of it as they use.

#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#define __device__
#define __global__
#define __shared__ static
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(threads)

using std::max;
using std::min;

struct Dim {
    unsigned x, y, z;
};
// Of the thread whose turn it is.
extern Dim threadIdx, blockIdx, blockDim, gridDim;

struct __align__(16) uint4 {
    unsigned x, y, z, w;
};
struct __align__(8) uint2 {
    unsigned x, y;
};

// Waits until all threads of the block, or of the warp, have come so far.
void __syncthreads();
void __syncwarp();
// What a lane gives the others of its warp.
struct Given {
    uint32_t values[6];
};
// Of all lanes, when each has given its own.
const Given *given_by_warp(Given own);

template <typename T> T __shfl_sync(unsigned, T value, int lane) {
    Given own = {};
    static_assert(sizeof value <= sizeof own);
    memcpy(&own, &value, sizeof value);
    memcpy(&value, given_by_warp(own) + lane % 32, sizeof value);
    return value;
}
template <typename T> T __shfl_xor_sync(unsigned all, T value, int mask) {
    return __shfl_sync(all, value, threadIdx.x % 32 ^ mask);
}

inline float __expf(float x) { return expf(x); }
inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline float __uint_as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
inline uint32_t __float_as_uint(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

struct __nv_bfloat16 {
    uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 value) { return __uint_as_float((uint32_t)value.bits << 16); }
inline __nv_bfloat16 __float2bfloat16(float value) {
    uint32_t bits = __float_as_uint(value);
    if (value != value) return {0x7fff};
    return {(uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

struct __half {
    uint16_t bits;
};
inline float __half2float(__half value) {
    int exponent = value.bits >> 10 & 31, mantissa = value.bits & 1023;
    float size = exponent == 31 ? (mantissa ? NAN : INFINITY)
                                : ldexpf(exponent ? mantissa | 1024 : mantissa, exponent ? exponent - 25 : -24);
    return value.bits >> 15 ? -size : size;
}
inline __half __float2half(float value) {
    uint16_t sign = std::signbit(value) << 15, bits;
    float size = fabsf(value);
    int exponent;
    if (size != size) {
        bits = 0x7fff;
    } else if (size >= 65520) {
        bits = 0x7c00;
    } else if (size < 0x1p-14f) {
        bits = rintf(size * 0x1p24f);
    } else {
        float part = rintf(frexpf(size, &exponent) * 2048);
        bits = ((exponent + 14) << 10) + ((int)part - 1024);
    }
    return {(uint16_t)(sign | bits)};
}
