// The yardstick for a failover on one host: what it takes to have the threads of a takeover woken one after the other,
// and nothing else. Three processes do what a leader's death has to start at the least: a thread of the second learns
// of it by a robust mutex, asks a thread of the third, is answered, and wakes its own process's main thread. There is
// no state, no memory to speak of, no JavaScript; each step is one store and one futex(2). bench/failover.mjs prints
// it beside its own figure: this is the host's part of that, the rest is quorate's own work.
//
//   takeover_wakes [--rounds 100] [--threads 11]
//
// --threads: how many threads of the leader sleep besides, as those of Node.js do; each of them has to be ended, too.
// Prints one JSON object: times in microseconds from the signal to the woken main thread, and the medians of the steps.
#include <getopt.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace {

constexpr long kRoundsMax = 10'000;
constexpr long kThreadsMax = 100;
constexpr time_t kWaitSecondsMax = 10;  // for a step; a process that hangs ends the program
constexpr useconds_t kPollUs = 200;
constexpr useconds_t kRestUs = 20'000;  // in which all threads fall asleep

/** A word that one thread sets once, and another of any process sleeps on until then. */
struct Signal {
  std::atomic<uint32_t> word{0};

  void set() {
    word.store(1);
    syscall(SYS_futex, &word, FUTEX_WAKE, 1, nullptr, nullptr, 0);
  }

  void wait() {
    const timespec most{kWaitSecondsMax, 0};
    while (word.load() == 0) {
      if (syscall(SYS_futex, &word, FUTEX_WAIT, 0, &most, nullptr, 0) != 0 && errno == ETIMEDOUT) _exit(1);
    }
  }
};

/** What the processes of one round share. */
struct Round {
  pthread_mutex_t leaderLives;
  std::atomic<int> asleep{0};  // threads that are about to sleep
  std::atomic<bool> isOver{false};
  Signal request;
  Signal grant;
  Signal order;
  uint64_t detected_ns = 0;
  uint64_t granted_ns = 0;
  uint64_t ordered_ns = 0;
};

uint64_t now_ns() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000u + static_cast<uint64_t>(now.tv_nsec);
}

[[noreturn]] void sleepForever() {
  for (;;) pause();
}

/** A child that runs `body` and then sleeps until it is killed, or its parent ends. */
pid_t start(const std::function<void()>& body) {
  const pid_t child = fork();
  if (child < 0) throw std::runtime_error(std::string("fork failed: ") + std::strerror(errno));
  if (child > 0) return child;
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  body();
  sleepForever();
}

void lead(Round& round, long threads) {
  for (long i = 0; i < threads; i++) std::thread(sleepForever).detach();
  std::thread([&round] {
    pthread_mutex_lock(&round.leaderLives);
    round.asleep++;
    sleepForever();
  }).detach();
}

void grant(Round& round) {
  std::thread([&round] {
    round.asleep++;
    round.request.wait();
    round.grant.set();
  }).detach();
}

void takeOver(Round& round) {
  std::thread([&round] {
    round.asleep++;
    if (pthread_mutex_lock(&round.leaderLives) != EOWNERDEAD) _exit(1);
    round.detected_ns = now_ns();
    round.request.set();
    round.grant.wait();
    round.granted_ns = now_ns();
    round.order.set();
  }).detach();
  round.order.wait();
  round.ordered_ns = now_ns();
  round.isOver.store(true);
}

void await(const std::function<bool()>& condition) {
  const uint64_t until = now_ns() + static_cast<uint64_t>(kWaitSecondsMax) * 1'000'000'000u;
  while (!condition()) {
    if (now_ns() > until) throw std::runtime_error("a process of the round did not get where it should");
    usleep(kPollUs);
  }
}

struct Steps {
  double total_us;
  double detect_us;
  double grant_us;
  double order_us;
};

Steps runRound(Round& round, long threads) {
  new (&round) Round{};
  pthread_mutexattr_t attributes;
  pthread_mutexattr_init(&attributes);
  pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
  pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
  pthread_mutex_init(&round.leaderLives, &attributes);
  const pid_t leader = start([&] { lead(round, threads); });
  await([&] { return round.asleep.load() == 1; });
  const pid_t voter = start([&] { grant(round); });
  const pid_t candidate = start([&] { takeOver(round); });
  await([&] { return round.asleep.load() == 3; });
  usleep(kRestUs);
  const uint64_t killed_ns = now_ns();
  kill(leader, SIGKILL);
  usleep(kRestUs);  // this process would only compete with the others
  await([&] { return round.isOver.load(); });
  for (const pid_t child : {leader, voter, candidate}) {
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
  }
  const auto us = [](uint64_t from, uint64_t to) { return static_cast<double>(to - from) / 1e3; };
  return {us(killed_ns, round.ordered_ns), us(killed_ns, round.detected_ns), us(round.detected_ns, round.granted_ns),
          us(round.granted_ns, round.ordered_ns)};
}

long number(const char* name, const char* text, long least, long most) {
  char* rest = nullptr;
  const long value = std::strtol(text, &rest, 10);
  if (rest == text || *rest != '\0' || value < least || value > most) {
    throw std::runtime_error(std::string("--") + name + " must be a number from " + std::to_string(least) + " to " +
                             std::to_string(most));
  }
  return value;
}

double percentile(const std::vector<Steps>& rounds, double Steps::* step, size_t percent) {
  std::vector<double> values;
  for (const Steps& round : rounds) values.push_back(round.*step);
  std::sort(values.begin(), values.end());
  return values[(values.size() - 1) * percent / 100];
}

int run(int argc, char** argv) {
  long rounds = 100;
  long threads = 11;
  const std::array<option, 3> known{{{"rounds", required_argument, nullptr, 'r'},
                                     {"threads", required_argument, nullptr, 't'},
                                     {nullptr, 0, nullptr, 0}}};
  for (int key; (key = getopt_long(argc, argv, "", known.data(), nullptr)) != -1;) {
    if (key == 'r') rounds = number("rounds", optarg, 1, kRoundsMax);
    else if (key == 't') threads = number("threads", optarg, 0, kThreadsMax);
    else return 2;
  }
  void* memory = mmap(nullptr, sizeof(Round), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::runtime_error(std::string("mmap failed: ") + std::strerror(errno));
  Round& round = *static_cast<Round*>(memory);
  std::vector<Steps> taken;
  for (long i = 0; i < rounds; i++) taken.push_back(runRound(round, threads));
  std::printf("{\"rounds\":%ld,\"threads\":%ld,\"p50\":%.0f,\"p99\":%.0f,\"max\":%.0f,"
              "\"mediansUs\":{\"detect\":%.0f,\"grant\":%.0f,\"order\":%.0f}}\n",
              rounds, threads, percentile(taken, &Steps::total_us, 50), percentile(taken, &Steps::total_us, 99),
              percentile(taken, &Steps::total_us, 100), percentile(taken, &Steps::detect_us, 50),
              percentile(taken, &Steps::grant_us, 50), percentile(taken, &Steps::order_us, 50));
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "takeover_wakes: %s\n", error.what());
    return 1;
  }
}
