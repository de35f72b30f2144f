// Products of a warp, for a processor: what `tensor.cuh` has instructions for.

#pragma once

template <typename T> uint32_t pair(float low, float high) {
    T two[2];
    store(two, low), store(two + 1, high);
    uint32_t bits;
    memcpy(&bits, two, sizeof bits);
    return bits;
}

// One of the two values in a register.
template <typename T> float part(uint32_t both, int at) {
    T two[2];
    memcpy(two, &both, sizeof two);
    return to_float(two[at]);
}

template <typename T> void multiply(float sums[4], const uint32_t a[4], uint32_t b0, uint32_t b1) {
    const Given own = {{a[0], a[1], a[2], a[3], b0, b1}};
    const Given *all = given_by_warp(own);
    const int lane = threadIdx.x % 32;
    for (int at = 0; at < 4; at++) {
        const int row = lane / 4, column = lane % 4 * 2 + at % 2;
        for (int inner = 0; inner < 16; inner++) {
            // Registers hold two values of a row each; the first half of rows and of columns come first.
            const int of_four = inner % 8 / 2, is_late = inner / 8;
            const uint32_t left = all[row * 4 + of_four].values[is_late * 2 + at / 2];
            const uint32_t right = all[column * 4 + of_four].values[4 + is_late];
            sums[at] += part<T>(left, inner % 2) * part<T>(right, inner % 2);
        }
    }
}

template <typename T> void load_columns(uint32_t four[4], const T *row) {
    Given own = {};
    memcpy(own.values, &row, sizeof row);
    const Given *all = given_by_warp(own);
    const int lane = threadIdx.x % 32;
    for (int matrix = 0; matrix < 4; matrix++) {
        T two[2];
        for (int at = 0; at < 2; at++) {
            const T *from;
            memcpy(&from, all[matrix * 8 + lane % 4 * 2 + at].values, sizeof from);
            two[at] = from[lane / 4];
        }
        memcpy(four + matrix, two, sizeof two);
    }
}
