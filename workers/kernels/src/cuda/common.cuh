// What kernels of encoders and decoders share.

#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(__half value) { return __half2float(value); }
__device__ inline float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ inline void store(float *to, float value) { *to = value; }
__device__ inline void store(__half *to, float value) { *to = __float2half(value); }
__device__ inline void store(__nv_bfloat16 *to, float value) { *to = __float2bfloat16(value); }

// All lanes of a warp.
#define FULL 0xffffffffu

__device__ inline float warp_sum(float value) {
    for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(FULL, value, step);
    return value;
}

__device__ inline float warp_max(float value) {
    for (int step = 16; step > 0; step /= 2) value = fmaxf(value, __shfl_xor_sync(FULL, value, step));
    return value;
}

// As `cuda.rs` numbers them.
__device__ inline float activated(float x, int activation) {
    switch (activation) {
    case 1: return 0.5f * x * (1 + erff(x * 0.70710678f));
    case 2: return 0.5f * x * (1 + tanhf(0.79788456f * (x + 0.044715f * x * x * x)));
    case 3: return x / (1 + expf(-x));
    case 4: return fmaxf(x, 0);
    case 5: return tanhf(x);
    case 6: return x / (1 + expf(-1.702f * x));
    default: return x;
    }
}
