// The shm device itself: what it reports, its directory, its files and what dead processes leave of them.
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <iterator>
#include <thread>

#include "provider/shm/leftovers.h"
#include "provider/shm/liveness.h"
#include "provider/shm/process_identity.h"
#include "test/child_process.h"
#include "test/shm_fixture.h"

namespace quorate::test {
namespace {

std::shared_ptr<Context> open(const std::string& directory) {
  return makeShmProvider(ShmOptions{directory})->openDevice("shm");
}

TEST_CASE("shm: one device with one port and one GID") {
  ShmTestDirectory directory;
  const auto provider = makeShmProvider(ShmOptions{directory.path()});
  CHECK(std::string(provider->name()) == "shm");
  REQUIRE(provider->listDevices().size() == 1);
  CHECK(provider->listDevices()[0].name == "shm");
  CHECK(provider->listDevices()[0].driver == "shm");
  CHECK(codeOf([&] { provider->openDevice("rxe0"); }) == "QUORATE_NO_DEVICE");
  const auto context = provider->openDevice("shm");
  CHECK(context->accessFlagsRevocationIsSynchronous());
  CHECK(context->queryDevice().physPortCnt == 1);
  CHECK(context->queryDevice().atomicCap == 2);
  const PortAttributes port = context->queryPort(1);
  CHECK(port.linkLayer == "SharedMemory");
  CHECK(port.state == PortState::Active);
  CHECK(port.activeMtuBytes == 4096);
  CHECK(port.lid == 0);
  CHECK(codeOf([&] { context->queryPort(2); }) == "QUORATE_OUT_OF_RANGE");
  const auto gids = context->queryGids(1);
  REQUIRE(gids.size() == 1);
  CHECK(gids[0].type == GidType::Shm);
  CHECK(chooseGid(gids, port).gid == gids[0].gid);
  const auto another = provider->openDevice("shm");
  CHECK_FALSE(another->queryGids(1)[0].gid == gids[0].gid);
  context->close();
  CHECK(codeOf([&] { context->queryGids(1); }) == "QUORATE_CLOSED");
}

// From here on this process and its threads live on a kernel without robust futexes. For a child: there is no way back.
bool forgetRobustFutexes() {
  sock_filter program[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_set_robust_list, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  sock_fprog filter{static_cast<unsigned short>(std::size(program)), program};
  return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0;
}

TEST_CASE("shm: a device whose end its peers could not see is not opened") {
  ShmTestDirectory directory;
  const pid_t child = forkChild([&directory] {
    if (!forgetRobustFutexes()) return 2;
    try {
      open(directory.path());
      return 3;
    } catch (const VerbsError& error) {
      const std::string text = error.what();
      return error.code == "QUORATE_SYSTEM" && text.find("robust futexes") != std::string::npos ? 0 : 4;
    }
  });
  CHECK(waitForChild(child) == 0);
}

TEST_CASE("shm: the directory must be ours alone, and no symbolic link") {
  ShmTestDirectory directory;
  SUBCASE("created with mode 0700, files with 0600") {
    const std::string path = directory.path() + "/made";
    Endpoint endpoint(open(path), {});
    struct stat status;
    REQUIRE(stat(path.c_str(), &status) == 0);
    CHECK((status.st_mode & 07777) == 0700);
    int files = 0;
    for (const auto& entry : std::filesystem::directory_iterator(path)) {
      REQUIRE(stat(entry.path().c_str(), &status) == 0);
      CHECK((status.st_mode & 07777) == 0600);
      files++;
    }
    CHECK(files == 2);
  }
  SUBCASE("one that cannot be made is an error with the path, and with what names it") {
    const std::string missing = directory.path() + "/missing/one";
    const auto messageOf = [](auto&& call) {
      try {
        call();
      } catch (const VerbsError& error) {
        return error.code + ": " + error.what();
      }
      return std::string();
    };
    CHECK(messageOf([&] { open(missing); }) ==
          "QUORATE_SYSTEM: mkdir failed for the shared-memory directory " + missing +
              ": No such file or directory. Create the directory that it is to be in, or name another one with the "
              "option shmDirectory, which names this one");
    setenv("QUORATE_SHM_DIR", missing.c_str(), 1);
    const std::string byEnvironment = messageOf([&] { open(""); });
    unsetenv("QUORATE_SHM_DIR");
    CHECK(byEnvironment.ends_with("with the environment variable QUORATE_SHM_DIR, which names this one"));
    const std::string file = directory.path() + "/file";
    ::close(::open(file.c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    CHECK(messageOf([&] { open(file + "/one"); }).find("Not a directory. If that cannot be mended") !=
          std::string::npos);
  }
  SUBCASE("a looser mode is refused") {
    chmod(directory.path().c_str(), 0750);
    CHECK(codeOf([&] { open(directory.path()); }) == "QUORATE_INVALID_ARGUMENT");
  }
  SUBCASE("a symbolic link is refused") {
    const std::string link = directory.path() + "/link";
    std::filesystem::create_directory(directory.path() + "/real");
    std::filesystem::create_symlink(directory.path() + "/real", link);
    CHECK(codeOf([&] { open(link); }) == "QUORATE_INVALID_ARGUMENT");
  }
  SUBCASE("a file is refused") {
    const std::string file = directory.path() + "/file";
    ::close(::open(file.c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    CHECK(codeOf([&] { open(file); }) == "QUORATE_INVALID_ARGUMENT");
  }
  SUBCASE("another user's is refused") {
    if (geteuid() == 0) {
      REQUIRE(chown(directory.path().c_str(), 65534, 65534) == 0);
      CHECK(codeOf([&] { open(directory.path()); }) == "QUORATE_INVALID_ARGUMENT");
    }
  }
  SUBCASE("QUORATE_SHM_DIR names it, an option overrides that") {
    const std::string fromEnvironment = directory.path() + "/environment";
    setenv("QUORATE_SHM_DIR", fromEnvironment.c_str(), 1);
    const auto context = open("");
    CHECK(std::filesystem::exists(fromEnvironment));
    const auto other = open(directory.path() + "/option");
    unsetenv("QUORATE_SHM_DIR");
    CHECK(std::filesystem::exists(directory.path() + "/option"));
  }
}

TEST_CASE("shm: memory that does not fit is a coded error and leaves nothing behind") {
  ShmTestDirectory directory;
  Endpoint endpoint(directory);
  const size_t files = directory.names().size();
  MemoryOptions options;
  options.lengthBytes = size_t{900} << 30;
  try {
    endpoint.context->allocateMemory(options);
    FAIL("900 GiB of shared memory were to be had");
  } catch (const VerbsError& error) {
    CHECK(error.code == "QUORATE_SYSTEM");
    CHECK(error.errnum == ENOSPC);
    CHECK(error.syscall == "fallocate");
    CHECK(std::string(error.what()).find("/dev/shm") != std::string::npos);
  }
  CHECK(directory.names().size() == files);
  options.lengthBytes = 0;
  CHECK(codeOf([&] { endpoint.context->allocateMemory(options); }) == "QUORATE_OUT_OF_RANGE");
  options.lengthBytes = 4096;
  options.hugePages = true;
  CHECK(codeOf([&] { endpoint.context->allocateMemory(options); }) == "QUORATE_UNSUPPORTED");
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // they need address space of their own

TEST_CASE("shm: shared memory that cannot be taken over for lack of address space leaves nothing behind") {
  ShmTestDirectory directory;
  const std::string path = directory.path() + "/replica.log";
  MemoryOptions options;
  options.lengthBytes = size_t{64} << 20;
  options.shared = true;
  options.sharedPath = path;
  open(directory.path())->allocateMemory(options);
  const pid_t child = forkChild([&] {
    const auto context = open(directory.path());
    // Room for the fresh file, and not for the one that is there.
    limitAddressSpace(options.lengthBytes * 3 / 2);
    try {
      context->allocateMemory(options);
      return 1;
    } catch (const VerbsError& error) {
      if (error.code != "QUORATE_SYSTEM" || error.syscall != "mmap") return 2;
    }
    return directory.names("replica").size() == 1 ? 0 : 3;
  });
  CHECK(waitForChild(child) == 0);
}

#endif

TEST_CASE("shm: memory can be had while signals come all the time") {
  ShmTestDirectory directory;
  const pid_t child = forkChild([&] {
    struct sigaction action {};
    action.sa_handler = [](int) {};
    action.sa_flags = SA_RESTART;
    sigaction(SIGALRM, &action, nullptr);
    const itimerval timer = {{0, 500}, {0, 500}};
    setitimer(ITIMER_REAL, &timer, nullptr);
    MemoryOptions options;
    options.lengthBytes = size_t{64} << 20;
    open(directory.path())->allocateMemory(options);
    sigset_t blocked;
    pthread_sigmask(SIG_SETMASK, nullptr, &blocked);
    return sigismember(&blocked, SIGALRM) == 0 ? 0 : 1;
  });
  CHECK(waitForChild(child) == 0);
}

TEST_CASE("shm: registering checks the range, the flags and the owner of the memory") {
  ShmTestDirectory directory;
  Endpoint endpoint(directory), other(directory);
  const auto registering = [&](size_t offset, size_t length, uint32_t access) {
    return codeOf([&] { endpoint.domain->registerMemory(endpoint.memory, offset, length, access); });
  };
  CHECK(registering(0, 65536, kAllAccess) == "");
  CHECK(registering(0, 65537, kAllAccess) == "QUORATE_OUT_OF_RANGE");
  CHECK(registering(65536, 1, kAllAccess) == "QUORATE_OUT_OF_RANGE");
  CHECK(registering(1, ~size_t{0}, kAllAccess) == "QUORATE_OUT_OF_RANGE");
  CHECK(registering(0, 0, kAllAccess) == "QUORATE_OUT_OF_RANGE");
  CHECK(registering(0, 8, kAccessRemoteWrite) == "QUORATE_INVALID_ARGUMENT");
  CHECK(registering(0, 8, kAccessOnDemand) == "QUORATE_UNSUPPORTED");
  CHECK(codeOf([&] { endpoint.domain->registerMemory(other.memory, 0, 8, kAllAccess); }) == "QUORATE_INVALID_ARGUMENT");
  endpoint.memory->close();
  CHECK(registering(0, 8, kAllAccess) == "QUORATE_CLOSED");
}

TEST_CASE("shm: tables that are full say so, and are usable again after a close") {
  ShmTestDirectory directory;
  Endpoint endpoint(directory);
  std::vector<std::shared_ptr<MemoryRegion>> regions;
  const std::string code = codeOf([&] {
    for (uint32_t i = 0; i <= shm::kMaxMemoryRegions; i++) {
      regions.push_back(endpoint.domain->registerMemory(endpoint.memory, 0, 8, kAccessLocalWrite));
    }
  });
  CHECK(code == "QUORATE_LIMIT");
  CHECK(regions.size() == shm::kMaxMemoryRegions - 1);
  regions[5]->close();
  CHECK(codeOf([&] { endpoint.domain->registerMemory(endpoint.memory, 0, 8, kAccessLocalWrite); }) == "");
}

TEST_CASE("shm: a completion queue that found no room takes nothing from those that are there") {
  ShmTestDirectory directory;
  EndpointOptions options;
  options.withChannel = true;
  Endpoint endpoint(directory, options);  // with the first of the queues
  Endpoint other(directory);
  connectPair(endpoint, other);
  std::vector<std::shared_ptr<CompletionQueue>> queues;
  const auto one = [&] {
    return codeOf([&] { queues.push_back(endpoint.context->createCompletionQueue(1, endpoint.channel)); });
  };
  while (one().empty()) REQUIRE(queues.size() < shm::kMaxCompletionQueues);
  CHECK(queues.size() == shm::kMaxCompletionQueues - 1);
  CHECK(one() == "QUORATE_LIMIT");
  endpoint.cq->requestNotify(false);
  CHECK(endpoint.post(endpoint.request(WrOpcode::RdmaWrite, 0, 8, other.coordinates())) == 0);
  CHECK(endpoint.channel->getEvent() == endpoint.cq);
  queues.pop_back();
  CHECK(one().empty());
}

TEST_CASE("shm: closing in any order removes every file, and the mapping lives as long as its holder") {
  ShmTestDirectory directory;
  EndpointOptions options;
  options.withChannel = true;
  std::shared_ptr<Memory> held;
  {
    Endpoint a(directory, options), b(directory, options);
    connectPair(a, b);
    REQUIRE(directory.names().size() == 6);
    a.context->close();
    CHECK(a.qp->closed());
    CHECK(a.region->closed());
    CHECK(codeOf([&] { a.post({}); }) == "QUORATE_CLOSED");
    WorkCompletion completion;
    CHECK(codeOf([&] { a.cq->poll(&completion, 1); }) == "QUORATE_CLOSED");
    a.context->close();
    held = b.memory;
    held->data()[9] = 9;
  }
  CHECK(directory.names(".ctl").size() == 1);  // b's context lives as long as its memory
  held->close();
  CHECK(held->data()[9] == 9);
  held.reset();
  CHECK(directory.names().empty());
}

struct Stages {
  std::atomic<int> stage{0};
};

TEST_CASE("shm: files of dead processes are removed by the next open, those of stopped ones are not") {
  ShmTestDirectory directory;
  SharedWithChildren<Stages> shared;
  const auto spawn = [&] {
    return forkChild([&] {
      EndpointOptions options;
      options.withChannel = true;
      Endpoint endpoint(directory, options);
      shared->stage++;
      waitUntil([&] { return shared->stage == 99; });
      return 0;
    });
  };
  const pid_t dead = spawn();
  const pid_t stopped = spawn();
  REQUIRE(waitUntil([&] { return shared->stage == 2; }));
  // What a process leaves that dies while it opens a context.
  const std::string unready = directory.path() + "/00000000000000aa.new-" + std::to_string(dead) + "-1";
  ::close(::open(unready.c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
  CHECK(directory.names().size() == 7);
  int status = 0;
  kill(stopped, SIGSTOP);
  REQUIRE(waitpid(stopped, &status, WUNTRACED) == stopped);
  kill(dead, SIGKILL);
  CHECK(waitForChild(dead) == 256 + SIGKILL);
  {
    const auto context = open(directory.path());
    CHECK(directory.names().size() == 4);  // three of the stopped one, one of ours
    CHECK(directory.names(".new-").empty());
  }
  kill(stopped, SIGKILL);
  CHECK(waitForChild(stopped) == 256 + SIGKILL);
  const auto context = open(directory.path());
  CHECK(directory.names().size() == 1);
}

TEST_CASE("shm: a context that a process of another PID namespace is opening is left alone") {
  ShmTestDirectory directory;
  const pid_t gone = forkChild([] { return 0; });
  REQUIRE(waitForChild(gone) == 0);
  shm::ProcessIdentity opener{gone, 1, shm::thisProcess().pidNamespace};
  const auto isLeftAlone = [&] {
    const std::string path = directory.path() + "/" + shm::unreadyName(1, opener);
    ::close(::open(path.c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    open(directory.path());
    return access(path.c_str(), F_OK) == 0;
  };
  CHECK_FALSE(isLeftAlone());
  opener.pidNamespace++;  // there the number is another process's
  CHECK(isLeftAlone());
}

TEST_CASE("shm: shared memory outlives its process and belongs to one context at a time") {
  ShmTestDirectory directory;
  const std::string path = directory.path() + "/replica.log";
  SharedWithChildren<Stages> shared;
  const pid_t child = forkChild([&] {
    EndpointOptions options;
    options.sharedPath = path;
    Endpoint endpoint(directory, options);
    std::memcpy(endpoint.bytes() + 777, "what I knew", 11);
    shared->stage = 1;
    waitUntil([&] { return shared->stage == 99; });
    return 0;
  });
  REQUIRE(waitUntil([&] { return shared->stage == 1; }));
  Endpoint endpoint(directory);
  MemoryOptions options;
  options.lengthBytes = 65536;
  options.shared = true;
  CHECK(codeOf([&] { endpoint.context->allocateMemory(options); }) == "QUORATE_INVALID_ARGUMENT");
  options.sharedPath = path;
  CHECK(codeOf([&] { endpoint.context->allocateMemory(options); }) == "QUORATE_SYSTEM");  // in use
  struct stat before, after;
  REQUIRE(stat(path.c_str(), &before) == 0);
  CHECK((before.st_mode & 07777) == 0600);
  kill(child, SIGKILL);
  CHECK(waitForChild(child) == 256 + SIGKILL);
  options.lengthBytes = 4096;
  CHECK(codeOf([&] { endpoint.context->allocateMemory(options); }) == "QUORATE_INVALID_ARGUMENT");  // another size
  options.lengthBytes = 65536;
  {
    const auto memory = endpoint.context->allocateMemory(options);
    CHECK(std::memcmp(memory->data() + 777, "what I knew", 11) == 0);
    // A fresh file: a requester of the dead process that is still storing does not reach it.
    REQUIRE(stat(path.c_str(), &after) == 0);
    CHECK(before.st_ino != after.st_ino);
    std::memcpy(memory->data() + 777, "WHAT", 4);
  }
  const auto again = endpoint.context->allocateMemory(options);
  CHECK(std::memcmp(again->data() + 777, "WHAT I knew", 4) == 0);
  CHECK(directory.names("replica").size() == 1);
}

TEST_CASE("shm: a child that only forked cannot use or damage what its parent opened") {
  ShmTestDirectory directory;
  Endpoint a(directory), b(directory);
  connectPair(a, b);
  const pid_t child = forkChild([&] {
    const SendWorkRequest request{};
    int errnum = 0;
    WorkCompletion completion;
    if (codeOf([&] { a.qp->postSend(&request, 1, &errnum); }) != "QUORATE_CLOSED") return 1;
    if (codeOf([&] { a.cq->poll(&completion, 1); }) != "QUORATE_CLOSED") return 2;
    if (codeOf([&] { a.context->allocateProtectionDomain(); }) != "QUORATE_CLOSED") return 3;
    a.qp->close();
    a.context->close();
    b.context->close();
    return 0;
  });
  CHECK(waitForChild(child) == 0);
  CHECK(a.run(a.request(WrOpcode::RdmaWrite, 0, 8, b.coordinates())) == WcStatus::Success);
  CHECK(directory.names().size() == 4);
}

TEST_CASE("shm: a peer's liveness is seen at its death and at its close, not while it is stopped") {
  ShmTestDirectory directory;
  SharedWithChildren<Stages> shared;
  SharedWithChildren<Coordinates> coordinates;
  const pid_t child = forkChild([&] {
    Endpoint endpoint(directory);
    *coordinates = endpoint.coordinates();
    shared->stage = 1;
    waitUntil([&] { return shared->stage >= 2; });
    return 0;
  });
  REQUIRE(waitUntil([&] { return shared->stage == 1; }));
  const auto liveness = shm::PeerLiveness::open(directory.path(), coordinates->gid);
  REQUIRE(liveness != nullptr);
  CHECK(liveness->alive());
  CHECK(liveness->pid() == child);
  CHECK_FALSE(liveness->waitUntilDead(1'000'000));
  SUBCASE("killed") {
    int status = 0;
    kill(child, SIGSTOP);
    REQUIRE(waitpid(child, &status, WUNTRACED) == child);
    CHECK(liveness->alive());
    std::thread killer([&] { kill(child, SIGKILL); });
    CHECK(liveness->waitUntilDead(20'000'000'000));
    killer.join();
    CHECK(waitUntil([&] { return liveness->exited(); }));
    CHECK(waitForChild(child) == 256 + SIGKILL);
  }
  SUBCASE("closed in good order") {
    shared->stage = 2;
    CHECK(liveness->waitUntilDead(20'000'000'000));
    CHECK(waitForChild(child) == 0);
  }
  CHECK_FALSE(liveness->alive());
  CHECK(shm::PeerLiveness::open(directory.path(), shm::makeGid(4711)) == nullptr);
}

}  // namespace
}  // namespace quorate::test
