// 几个核怎样分一段活？——各有各的一份，自己的做完了帮别人做；全部做完才进下一段。
//
//   一段有 n 份：  核 0 ▶ 0 1 2 3 4 │ 5 6 7 8 9 ◀ 核 1
//                  核 1 被系统叫走了，核 0 做完 4 就接着做 5、6、7……
//
// 为什么不用现成的栅栏（barrier）：它要等每个核都到。别的程序占着一个核时，那个核几毫秒才轮到一次，
// 一步几十道栅栏，就慢几十倍。这里等的是「活都做完」，不是「人都到齐」：没有活的核晚到，谁也不等它。
// 份是按次序拿的，所以每个核读的内存仍是相连的一段。
#pragma once
#include <atomic>

#include "interface.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#include <thread>

static constexpr int64_t MOST_THREADS = 64;

struct Share {  // 一段活的账：每个核那一份做到第几个，一共做完了几个；各占一条缓存线，免得互相争
    struct alignas(64) Count { std::atomic<int64_t> value; };
    Count next[MOST_THREADS], done;
};

struct Team {
    Share* shares;      // 每段一份，用前清零
    int64_t n_threads;
};

// 一个核眼里的进度：做到第几段
struct Worker {
    const Team& team;
    int64_t me, phase = 0;

    template <class F>
    void share(int64_t n, F f) {
        Share& s = team.shares[phase++];
        const int64_t threads = team.n_threads;
        int64_t mine = 0;
        for (int64_t k = 0; k < threads; k++) {
            const int64_t owner = (me + k) % threads, begin = n * owner / threads, end = n * (owner + 1) / threads;
            std::atomic<int64_t>& next = s.next[owner].value;
            while (next.load(std::memory_order_relaxed) < end - begin) {
                const int64_t i = begin + next.fetch_add(1, std::memory_order_relaxed);
                if (i >= end) break;
                f(i);
                mine++;
            }
        }
        if (mine) s.done.value.fetch_add(mine, std::memory_order_release);
        // 最后几份还在别人手里：多半只差几微秒，原地等；久了就把核让出来
        for (int spins = 0; s.done.value.load(std::memory_order_acquire) < n; spins++) {
#if defined(__x86_64__)
            _mm_pause();
#endif
            if (spins > 20000) std::this_thread::yield();
        }
    }
};
