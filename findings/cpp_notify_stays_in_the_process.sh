#!/bin/bash
# std::atomic<int>::notify_all wakes no waiter in another process; release of a std::counting_semaphore does
#
# Versions   libstdc++-12-dev 12.2.0-14+deb12u1 (GCC 12.2, Debian 12), Linux 6.18.
# Behaviour  A std::atomic<int> lies in memory that two processes share. One sleeps in wait(0), the other stores 1 and calls notify_all:
#            nothing happens, though the sleeper waits for the word itself with a futex that is not private, as a FUTEX_WAKE from
#            outside shows. notify looks first whether anybody waits, in a table that each process has for itself. A
#            counting_semaphore in the same memory calls the kernel without that look, and its waiter wakes.
# Guess      Both work, or neither: std::atomic<int> is always lock-free, lock-free operations are meant to be address-free, so that
#            processes can communicate through memory they share ([atomics.lockfree]), and wait and notify are operations of it.
#            A waiter that was about to sleep sees the new value, so tests with a quick peer pass.
# Matters    C++20 offers these where a shared-memory ring had a futex by hand, or Boost. Loads, stores and exchange are right across
#            processes, a wake-up never comes. Call futex yourself (without FUTEX_PRIVATE_FLAG), or use sem_t with pshared set.
# Seen       semaphore, another process: woken; atomic, a thread: woken; atomic, another process: asleep, and woken by FUTEX_WAKE
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
[ "$(uname -m)" = x86_64 ] || { echo "skipped: not x86-64"; exit 0; }
version=12.2.0-14+deb12u1
apt-get download libstdc++-12-dev=$version >/dev/null 2>&1 || { echo "apt has no libstdc++-12-dev $version (apt-get update?)" >&2; exit 2; }
dpkg -x libstdc++-12-dev_*.deb .
cat >notify.cc <<'C'
#include <atomic>
#include <cstdio>
#include <csignal>
#include <cstdlib>
#include <linux/futex.h>
#include <new>
#include <semaphore>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

struct shared {
    std::atomic<int> word{0};
    std::atomic<int> sleeper{0}, woken{0};
    std::counting_semaphore<> semaphore{0};
};

static shared *make() {
    void *at = mmap(nullptr, sizeof(shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) _exit(2);
    return new (at) shared;
}

static void sleeper(shared *at, bool semaphore) {
    at->sleeper = static_cast<int>(syscall(SYS_gettid));
    if (semaphore) at->semaphore.acquire();
    else at->word.wait(0);
    at->woken = 1;
}

// Until the kernel has it asleep in a futex.
static void until_asleep(const shared *at) {
    char path[64], call[8];
    for (int i = 0; i < 6000; i++) {
        usleep(10000);
        std::snprintf(path, sizeof path, "/proc/%d/syscall", at->sleeper.load());
        std::FILE *file = std::fopen(path, "r");
        bool asleep = file && std::fscanf(file, "%7s", call) == 1 && std::atoi(call) == SYS_futex;
        if (file) std::fclose(file);
        if (asleep) return;
    }
    _exit(2);
}

static bool woken(const shared *at, int tenths) {
    for (; tenths > 0 && !at->woken; tenths--) usleep(100000);
    return at->woken;
}

static pid_t spawn(shared *at, bool semaphore) {
    pid_t child = fork();
    if (child < 0) _exit(2);
    if (child == 0) prctl(PR_SET_PDEATHSIG, SIGKILL), sleeper(at, semaphore), _exit(0);
    until_asleep(at);
    return child;
}

int main() {
    static_assert(std::atomic<int>::is_always_lock_free);
    shared *at = make();
    pid_t child = spawn(at, true);
    at->semaphore.release();
    bool by_semaphore = woken(at, 300);
    if (!by_semaphore) kill(child, SIGKILL);
    waitpid(child, nullptr, 0);

    at = make();
    std::thread thread(sleeper, at, false);
    until_asleep(at);
    at->word = 1;
    at->word.notify_all();
    bool by_thread = woken(at, 300);
    if (!by_thread) return 2;
    thread.join();

    at = make();
    child = spawn(at, false);
    at->word = 1;
    at->word.notify_all();
    bool by_notify = woken(at, 10);
    bool by_hand = !by_notify && syscall(SYS_futex, &at->word, FUTEX_WAKE, 1, nullptr, nullptr, 0) == 1;
    if (!by_notify && !by_hand) kill(child, SIGKILL);
    waitpid(child, nullptr, 0);

    std::printf("semaphore, another process: %s; atomic, a thread: woken; atomic, another process: %s%s\n",
                by_semaphore ? "woken" : "asleep", by_notify ? "woken" : "asleep", by_hand ? ", and woken by FUTEX_WAKE" : "");
    if (by_semaphore && by_hand) return 0;
    return std::fprintf(stderr, "changed\n"), 1;
}
C
include=$dir/usr/include
g++ -std=c++20 -O1 -Wall -Werror -pthread -nostdinc++ -isystem "$include/c++/12" -isystem "$include/x86_64-linux-gnu/c++/12" \
    -isystem "$include/c++/12/backward" -o notify notify.cc
./notify
