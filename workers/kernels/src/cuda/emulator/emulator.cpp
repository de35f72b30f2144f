// Runs the kernels on a processor: for tests where there is no GPU.
//
// One thread block runs after the other. Its threads have stacks of their own and take turns: each runs until it has to wait
// for others. In every second launch they come in the opposite order, so that what rests on one order is found out.

#include "../decoder.cu"
#include "../experts.cu"

#include <csetjmp>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <ucontext.h>
#include <utility>

Dim threadIdx, blockIdx, blockDim, gridDim;

namespace {
constexpr int THREADS_MAX = 1024;
constexpr size_t STACK_BYTES = 64 << 10;

enum class State { runs, waits_for_warp, waits_for_block, has_ended };

struct Thread {
    State state;
    bool has_begun;
    jmp_buf place;
    ucontext_t start;
    std::unique_ptr<char[]> stack;
    // How often it has given something.
    unsigned turns;
};

Thread threads[THREADS_MAX];
// Used in turns: who is a step ahead does not write over what another has yet to read.
Given given[2][THREADS_MAX];
Thread *current;
jmp_buf scheduler;
void (*body)(void **);
void **arguments_of_body;

[[noreturn]] void fail(const char *reason) {
    fprintf(stderr, "a kernel %s\n", reason);
    abort();
}

// To the scheduler, until the thread has its turn again.
__attribute__((noinline)) void wait(State state) {
    current->state = state;
    if (_setjmp(current->place) == 0) _longjmp(scheduler, 1);
}

void run_thread() {
    body(arguments_of_body);
    current->state = State::has_ended;
    _longjmp(scheduler, 1);
}

__attribute__((noinline)) void resume(unsigned index) {
    current = threads + index;
    threadIdx = {index, 0, 0};
    if (_setjmp(scheduler) != 0) return;
    if (current->has_begun) _longjmp(current->place, 1);
    current->has_begun = true;
    setcontext(&current->start);
}

void prepare(Thread &thread) {
    if (!thread.stack) thread.stack.reset(new char[STACK_BYTES]);
    thread.state = State::runs, thread.has_begun = false, thread.turns = 0;
    getcontext(&thread.start);
    thread.start.uc_stack.ss_sp = thread.stack.get();
    thread.start.uc_stack.ss_size = STACK_BYTES;
    thread.start.uc_link = nullptr;
    makecontext(&thread.start, run_thread, 0);
}

// Whether threads that wait so may go on, which they do then: no other one is left to come.
bool go_on(unsigned first, unsigned count, State waiting) {
    unsigned waits = 0, ended = 0;
    for (unsigned at = first; at < first + count; at++) {
        waits += threads[at].state == waiting;
        ended += threads[at].state == State::has_ended;
    }
    if (waits == 0) return false;
    if (waiting == State::waits_for_warp && ended > 0) fail("has threads that ended while their warp waits for them");
    if (waits + ended < count) return false;
    for (unsigned at = first; at < first + count; at++) {
        if (threads[at].state == waiting) threads[at].state = State::runs;
    }
    return true;
}

void run_block(bool is_reversed) {
    const unsigned count = blockDim.x;
    for (unsigned at = 0; at < count; at++) prepare(threads[at]);
    for (unsigned ended = 0; ended < count;) {
        for (unsigned at = 0; at < count; at++) {
            unsigned index = is_reversed ? count - 1 - at : at;
            if (threads[index].state != State::runs) continue;
            resume(index);
            ended += threads[index].state == State::has_ended;
        }
        bool goes_on = ended == count;
        for (unsigned warp = 0; warp < count; warp += 32) {
            goes_on |= go_on(warp, std::min(32u, count - warp), State::waits_for_warp);
        }
        goes_on |= go_on(0, count, State::waits_for_block);
        if (!goes_on) fail("has threads that wait for each other");
    }
}

// Calls a kernel with what a launch has as pointers.
template <typename... A, size_t... AT> void apply(void (*kernel)(A...), void **arguments, std::index_sequence<AT...>) {
    kernel(*static_cast<A *>(arguments[AT])...);
}
template <typename... A> void apply(void (*kernel)(A...), void **arguments) {
    apply(kernel, arguments, std::index_sequence_for<A...>());
}

struct Kernel {
    const char *name;
    void (*run)(void **);
};
#define KERNEL(NAME) {#NAME, [](void **arguments) { apply(NAME, arguments); }},
#define KERNELS(T)                                                                                                     \
    KERNEL(embed_##T)                                                                                                  \
    KERNEL(join_##T)                                                                                                   \
    KERNEL(place_##T)                                                                                                  \
    KERNEL(gather_##T)                                                                                                 \
    KERNEL(activate_##T)                                                                                               \
    KERNEL(score_##T)                                                                                                  \
    KERNEL(attend_##T##_64_1)                                                                                          \
    KERNEL(attend_##T##_64_2)                                                                                          \
    KERNEL(attend_##T##_64_4)                                                                                          \
    KERNEL(attend_##T##_128_1)                                                                                         \
    KERNEL(attend_##T##_128_2)                                                                                         \
    KERNEL(attend_##T##_128_4)                                                                                         \
    KERNEL(attend_##T##_256_1)                                                                                         \
    KERNEL(choose_##T)                                                                                                 \
    KERNEL(sort_##T)                                                                                                   \
    KERNEL(multiply_##T)                                                                                               \
    KERNEL(multiply_##T##_packed)                                                                                      \
    KERNEL(unpack_##T)                                                                                                 \
    KERNEL(combine_##T)
#define KERNELS_OF_TENSOR_CORES(T)                                                                                     \
    KERNEL(attend_##T##_64_16)                                                                                         \
    KERNEL(attend_##T##_128_16)                                                                                        \
    KERNEL(attend_##T##_256_16)
const Kernel KERNELS_OF_ALL_TYPES[] = {KERNEL(draw_f32) KERNELS(f32) KERNELS(f16) KERNELS(bf16) KERNELS_OF_TENSOR_CORES(f16)
                                           KERNELS_OF_TENSOR_CORES(bf16)};
} // namespace

void __syncthreads() { wait(State::waits_for_block); }
void __syncwarp() { wait(State::waits_for_warp); }

const Given *given_by_warp(Given own) {
    const unsigned index = threadIdx.x, turn = current->turns++ % 2;
    given[turn][index] = own;
    wait(State::waits_for_warp);
    return given[turn] + index / 32 * 32;
}

// Whether there is a kernel of that name, which has run then.
extern "C" bool inferq_emulate(const char *name, const unsigned blocks[3], unsigned count, void **arguments) {
    static std::mutex one_at_a_time;
    static bool is_reversed;
    std::lock_guard<std::mutex> guard(one_at_a_time);
    for (const Kernel &kernel : KERNELS_OF_ALL_TYPES) {
        if (strcmp(kernel.name, name) != 0) continue;
        if (count > THREADS_MAX) fail("has too many threads");
        body = kernel.run, arguments_of_body = arguments, is_reversed = !is_reversed;
        gridDim = {blocks[0], blocks[1], blocks[2]}, blockDim = {count, 1, 1};
        for (unsigned z = 0; z < blocks[2]; z++) {
            for (unsigned y = 0; y < blocks[1]; y++) {
                for (unsigned x = 0; x < blocks[0]; x++) {
                    blockIdx = {x, y, z};
                    run_block(is_reversed);
                }
            }
        }
        return true;
    }
    return false;
}
