// Products on tensor cores, by a warp together.

#pragma once
#include "common.cuh"

#ifdef __CUDACC__

// Two values in one register, the first one low.
template <typename T> __device__ inline uint32_t pair(float low, float high);
template <> __device__ inline uint32_t pair<__half>(float low, float high) {
    __half2 two = __floats2half2_rn(low, high);
    return *reinterpret_cast<uint32_t *>(&two);
}
template <> __device__ inline uint32_t pair<__nv_bfloat16>(float low, float high) {
    __nv_bfloat162 two = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<uint32_t *>(&two);
}

// sums (16 x 8) += a (16 x 16) * b (16 x 8). Of sums a lane holds rows `lane / 4` and 8 further, columns `lane % 4 * 2` and the
// next.
template <typename T> __device__ inline void multiply(float sums[4], const uint32_t a[4], uint32_t b0, uint32_t b1);
#define MULTIPLY(T, NAME)                                                                                              \
    template <> __device__ inline void multiply<T>(float sums[4], const uint32_t a[4], uint32_t b0, uint32_t b1) {     \
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." NAME "." NAME ".f32 "                                    \
                     "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                                 \
                     : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])                                      \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                                  \
    }
MULTIPLY(__half, "f16")
MULTIPLY(__nv_bfloat16, "bf16")

// Four times 8 x 8 values from shared memory, of which each lane tells where a row of 8 begins. A lane gets of each the rows
// `lane % 4 * 2` and the next, in column `lane / 4`.
template <typename T> __device__ inline void load_columns(uint32_t four[4], const T *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(four[0]), "=r"(four[1]), "=r"(four[2]), "=r"(four[3])
                 : "r"((uint32_t)__cvta_generic_to_shared(row)));
}

#else
#include <tensor_cores.h>
#endif
