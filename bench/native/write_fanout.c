/*
 * The yardstick for commit latency: what one RDMA WRITE to each of several peers costs when nothing but libibverbs is
 * in the way. One loop posts a WRITE to every peer and busy-polls until all have completed; the time of each round is
 * recorded. Compare a commit through quorate with it in the same boot and with the same size, since both run over the
 * same devices.
 *
 *   write_fanout --device b0 --peers b1,b2 [--size 128] [--iterations 10000] [--warmup 200] [--per-sample 1]
 *                [--inline] [--timeout 60] [--json]
 *
 * With --per-sample N the clock is read every N rounds only, and a time is the mean of N: for comparing with a program
 * in which reading the clock costs more.
 *
 * Each peer is a forked child process that owns a responder queue pair on its device and then waits: the WRITEs are
 * served by the device (rxe: by the kernel), never by the child. At the end each child checks that its memory holds
 * the last round's bytes, so a figure is never that of WRITEs that went nowhere.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <getopt.h>
#include <infiniband/verbs.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
  kMaxPeers = 8,
  kMaxSizeBytes = 1 << 20,
  kMaxIterations = 10 * 1000 * 1000,
  kPortNumber = 1,
  kInlineBytes = 512,
  kMaxPerSample = 1024,
};

/* What one end tells the other, through a pipe between two processes of this program. */
struct address {
  union ibv_gid gid;
  uint32_t qp_number;
  uint32_t psn;
  uint32_t rkey;
  uint64_t memory;
};

/* An open device with one region of memory. */
struct end {
  struct ibv_context* context;
  struct ibv_pd* domain;
  struct ibv_cq* cq;
  struct ibv_mr* region;
  uint8_t* memory;
  union ibv_gid gid;
  int gid_index;
  enum ibv_mtu mtu;
};

struct peer {
  pid_t pid;
  int to_child, from_child;
  struct ibv_qp* qp;
  struct address remote;
};

struct settings {
  const char* device;
  const char* peer_devices[kMaxPeers];
  int peer_count;
  uint32_t size_bytes;
  long iterations;
  long warmup;
  long per_sample;
  long timeout_s;
  bool inline_data;
  bool json;
};

static struct peer g_peers[kMaxPeers];
static int g_peer_count;

/* The parent ends its children by their ids; a child has none. */
static void end_children(void) {
  for (int i = 0; i < g_peer_count; i++) {
    if (g_peers[i].pid > 0) kill(g_peers[i].pid, SIGKILL);
  }
  for (int i = 0; i < g_peer_count; i++) {
    if (g_peers[i].pid > 0) waitpid(g_peers[i].pid, NULL, 0);
    g_peers[i].pid = 0;
  }
}

__attribute__((noreturn, format(printf, 1, 2))) static void fail(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fprintf(stderr, "write_fanout: ");
  vfprintf(stderr, format, arguments);
  fprintf(stderr, "\n");
  va_end(arguments);
  end_children();
  exit(1);
}

static uint64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void write_all(int fd, const void* data, size_t length) {
  if (write(fd, data, length) != (ssize_t)length) fail("a pipe to another process broke: %s", strerror(errno));
}

/* Messages are far smaller than PIPE_BUF, so they arrive whole. */
static void read_all(int fd, void* data, size_t length, uint64_t deadline_ns) {
  const uint64_t now = now_ns();
  struct pollfd one = {.fd = fd, .events = POLLIN};
  const int left_ms = deadline_ns > now ? (int)((deadline_ns - now) / 1000000u) + 1 : 0;
  if (poll(&one, 1, left_ms) != 1) fail("no answer from the other process before the timeout");
  if (read(fd, data, length) != (ssize_t)length) fail("the other process ended early");
}

/* --- Device ------------------------------------------------------------------------------------------------------- */

/* Lower is better: an IPv4 address, a global IPv6 one, a link-local one. Entry 0 on InfiniBand. */
static int gid_preference(const union ibv_gid* gid) {
  static const uint8_t mapped[12] = {[10] = 0xff, [11] = 0xff};
  if (memcmp(gid->raw, mapped, sizeof(mapped)) == 0) return 0;
  return gid->raw[0] == 0xfe && (gid->raw[1] & 0xc0) == 0x80 ? 2 : 1;
}

static void choose_gid(struct end* end, const struct ibv_port_attr* port, const char* device) {
  const union ibv_gid none = {.raw = {0}};
  int best = 3;
  for (int index = 0; index < port->gid_tbl_len && index < 256; index++) {
    struct ibv_gid_entry entry;
    if (ibv_query_gid_ex(end->context, kPortNumber, (uint32_t)index, &entry, 0) != 0) continue;
    if (memcmp(&entry.gid, &none, sizeof(none)) == 0) continue;
    if (port->link_layer == IBV_LINK_LAYER_ETHERNET && entry.gid_type != IBV_GID_TYPE_ROCE_V2) continue;
    const int preference = port->link_layer == IBV_LINK_LAYER_ETHERNET ? gid_preference(&entry.gid) : 0;
    if (preference >= best) continue;
    best = preference;
    end->gid = entry.gid;
    end->gid_index = index;
  }
  if (best == 3) fail("%s has no usable GID; give its network interface an address", device);
}

static void open_end(struct end* end, const char* device, size_t memory_bytes, int cq_depth) {
  memset(end, 0, sizeof(*end));
  struct ibv_device** list = ibv_get_device_list(NULL);
  if (list == NULL) fail("cannot list the RDMA devices: %s", strerror(errno));
  for (int i = 0; list[i] != NULL; i++) {
    if (strcmp(ibv_get_device_name(list[i]), device) == 0) end->context = ibv_open_device(list[i]);
  }
  ibv_free_device_list(list);
  if (end->context == NULL) fail("cannot open the RDMA device %s (is there one of that name?)", device);
  struct ibv_port_attr port;
  const int errnum = ibv_query_port(end->context, kPortNumber, &port);
  if (errnum != 0) fail("cannot query port %d of %s: %s", kPortNumber, device, strerror(errnum));
  if (port.state != IBV_PORT_ACTIVE) fail("port %d of %s is not active", kPortNumber, device);
  end->mtu = port.active_mtu < IBV_MTU_1024 ? port.active_mtu : IBV_MTU_1024;
  choose_gid(end, &port, device);
  end->memory = mmap(NULL, memory_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (end->memory == MAP_FAILED) fail("cannot map %zu bytes: %s", memory_bytes, strerror(errno));
  end->domain = ibv_alloc_pd(end->context);
  if (end->domain == NULL) fail("cannot allocate a protection domain on %s: %s", device, strerror(errno));
  end->region = ibv_reg_mr(end->domain, end->memory, memory_bytes, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE);
  if (end->region == NULL) {
    fail("cannot register %zu bytes on %s: %s (see ulimit -l)", memory_bytes, device, strerror(errno));
  }
  end->cq = ibv_create_cq(end->context, cq_depth, NULL, NULL, 0);
  if (end->cq == NULL) fail("cannot create a completion queue on %s: %s", device, strerror(errno));
}

static struct ibv_qp* create_qp(const struct end* end, bool inline_data) {
  struct ibv_qp_init_attr init = {
      .send_cq = end->cq,
      .recv_cq = end->cq,
      .qp_type = IBV_QPT_RC,
      .sq_sig_all = 1,
      .cap = {.max_send_wr = 16,
              .max_recv_wr = 1,
              .max_send_sge = 1,
              .max_recv_sge = 1,
              .max_inline_data = inline_data ? kInlineBytes : 0},
  };
  struct ibv_qp* qp = ibv_create_qp(end->domain, &init);
  if (qp == NULL) fail("cannot create a queue pair: %s", strerror(errno));
  return qp;
}

static struct address address_of(const struct end* end, const struct ibv_qp* qp) {
  struct address address;
  memset(&address, 0, sizeof(address));
  address.gid = end->gid;
  address.qp_number = qp->qp_num;
  address.psn = (uint32_t)(now_ns() ^ (uint64_t)getpid() << 8) & 0xffffff;
  address.rkey = end->region->rkey;
  address.memory = (uint64_t)(uintptr_t)end->memory;
  return address;
}

static void connect_qp(const struct end* end, struct ibv_qp* qp, const struct address* own,
                       const struct address* remote) {
  struct ibv_qp_attr attributes = {
      .qp_state = IBV_QPS_INIT, .port_num = kPortNumber, .qp_access_flags = IBV_ACCESS_REMOTE_WRITE};
  int errnum = ibv_modify_qp(qp, &attributes, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS);
  if (errnum != 0) fail("a queue pair does not go to INIT: %s", strerror(errnum));
  attributes = (struct ibv_qp_attr){
      .qp_state = IBV_QPS_RTR,
      .path_mtu = end->mtu,
      .dest_qp_num = remote->qp_number,
      .rq_psn = remote->psn,
      .max_dest_rd_atomic = 1,
      .min_rnr_timer = 12,
      .ah_attr = {.is_global = 1,
                  .port_num = kPortNumber,
                  .grh = {.dgid = remote->gid, .sgid_index = (uint8_t)end->gid_index, .hop_limit = 64}},
  };
  errnum = ibv_modify_qp(qp, &attributes,
                         IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
                             IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER);
  if (errnum != 0) fail("a queue pair does not go to RTR: %s (is the peer's address reachable?)", strerror(errnum));
  /* rxe never gives up with 7 retries. */
  attributes = (struct ibv_qp_attr){
      .qp_state = IBV_QPS_RTS, .sq_psn = own->psn, .max_rd_atomic = 1, .retry_cnt = 6, .rnr_retry = 7, .timeout = 14};
  errnum = ibv_modify_qp(
      qp, &attributes,
      IBV_QP_STATE | IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_TIMEOUT);
  if (errnum != 0) fail("a queue pair does not go to RTS: %s", strerror(errnum));
}

/* --- Peers -------------------------------------------------------------------------------------------------------- */

/* The content of a round: every byte differs from that of the rounds before and after. */
static uint8_t round_byte(long round) {
  return (uint8_t)(round % 251 + 1);
}

__attribute__((noreturn)) static void run_peer(const struct settings* settings, const char* device, int from_parent,
                                               int to_parent, uint64_t deadline_ns) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  struct end end;
  open_end(&end, device, settings->size_bytes, 16);
  struct ibv_qp* qp = create_qp(&end, false);
  const struct address own = address_of(&end, qp);
  write_all(to_parent, &own, sizeof(own));
  struct address remote;
  read_all(from_parent, &remote, sizeof(remote), deadline_ns);
  connect_qp(&end, qp, &own, &remote);
  write_all(to_parent, "c", 1);
  long last_round;
  read_all(from_parent, &last_round, sizeof(last_round), deadline_ns);
  uint8_t verdict = 1;
  for (uint32_t i = 0; i < settings->size_bytes; i++) {
    if (((volatile uint8_t*)end.memory)[i] != round_byte(last_round)) verdict = 0;
  }
  write_all(to_parent, &verdict, 1);
  exit(0);
}

static void start_peer(const struct settings* settings, int number, uint64_t deadline_ns) {
  /* The parent is to be the one that reports a timeout; it ends its children then. */
  const uint64_t peer_deadline_ns = deadline_ns + 5000000000u;
  int to_child[2], from_child[2];
  if (pipe(to_child) != 0 || pipe(from_child) != 0) fail("cannot make a pipe: %s", strerror(errno));
  const pid_t pid = fork();
  if (pid < 0) fail("cannot fork: %s", strerror(errno));
  if (pid == 0) {
    close(to_child[1]);
    close(from_child[0]);
    /* The pipes of elder peers belong to the parent, and so do their processes. */
    for (int i = 0; i < g_peer_count; i++) {
      close(g_peers[i].to_child);
      close(g_peers[i].from_child);
    }
    g_peer_count = 0;
    run_peer(settings, settings->peer_devices[number], to_child[0], from_child[1], peer_deadline_ns);
  }
  close(to_child[0]);
  close(from_child[1]);
  g_peers[g_peer_count++] = (struct peer){.pid = pid, .to_child = to_child[1], .from_child = from_child[0]};
}

/* --- Measurement -------------------------------------------------------------------------------------------------- */

static void run_round(const struct settings* settings, const struct end* end, long round, uint64_t deadline_ns) {
  for (int i = 0; i < g_peer_count; i++) {
    struct ibv_sge buffer = {
        .addr = (uint64_t)(uintptr_t)end->memory, .length = settings->size_bytes, .lkey = end->region->lkey};
    struct ibv_send_wr request = {
        .wr_id = (uint64_t)round,
        .sg_list = &buffer,
        .num_sge = 1,
        .opcode = IBV_WR_RDMA_WRITE,
        .send_flags = IBV_SEND_SIGNALED | (settings->inline_data ? (unsigned)IBV_SEND_INLINE : 0u),
        .wr.rdma = {.remote_addr = g_peers[i].remote.memory, .rkey = g_peers[i].remote.rkey},
    };
    struct ibv_send_wr* bad;
    const int errnum = ibv_post_send(g_peers[i].qp, &request, &bad);
    if (errnum != 0) fail("round %ld: posting to peer %d failed: %s", round, i, strerror(abs(errnum)));
  }
  int completed = 0;
  for (unsigned polls = 0; completed < g_peer_count; polls++) {
    struct ibv_wc completions[kMaxPeers];
    const int count = ibv_poll_cq(end->cq, kMaxPeers, completions);
    if (count < 0) fail("round %ld: polling the completion queue failed", round);
    for (int i = 0; i < count; i++) {
      if (completions[i].status != IBV_WC_SUCCESS) {
        fail("round %ld: a WRITE failed: %s", round, ibv_wc_status_str(completions[i].status));
      }
      if (completions[i].wr_id != (uint64_t)round) fail("round %ld: a completion of another round came", round);
    }
    completed += count;
    if (polls % 1024 == 1023 && now_ns() > deadline_ns) fail("round %ld: timeout", round);
  }
}

/* The mean time of a round, of those from `round` on that make one sample. They write the bytes of the last of them. */
static uint64_t run_sample(const struct settings* settings, const struct end* end, long round, uint64_t deadline_ns) {
  memset(end->memory, round_byte(round + settings->per_sample - 1), settings->size_bytes);
  const uint64_t start = now_ns();
  for (long i = 0; i < settings->per_sample; i++) run_round(settings, end, round + i, deadline_ns);
  return (now_ns() - start) / (uint64_t)settings->per_sample;
}

static int compare_ns(const void* a, const void* b) {
  const uint64_t x = *(const uint64_t*)a, y = *(const uint64_t*)b;
  return x < y ? -1 : x > y;
}

/* Nearest rank: the smallest value that at least `percent` of all values do not exceed. */
static double percentile_us(const uint64_t* sorted_ns, long count, long percent) {
  long rank = (count * percent + 99) / 100;
  if (rank < 1) rank = 1;
  return (double)sorted_ns[rank - 1] / 1000.0;
}

/* --- Command line ------------------------------------------------------------------------------------------------- */

static long parse_number(const char* name, const char* text, long least, long most) {
  char* rest;
  errno = 0;
  const long value = strtol(text, &rest, 10);
  if (errno != 0 || rest == text || *rest != '\0' || value < least || value > most) {
    fail("--%s is \"%s\", must be a number from %ld to %ld", name, text, least, most);
  }
  return value;
}

static const char kUsage[] =
    "usage: write_fanout --device NAME --peers NAME[,NAME...] [--size BYTES] [--iterations N] [--warmup N]\n"
    "                    [--per-sample N] [--inline] [--timeout SECONDS] [--json]\n"
    "Median and 99th percentile of the time from posting one RDMA WRITE to each peer until all have completed.\n";

static struct settings parse_arguments(int argc, char** argv) {
  struct settings settings = {.size_bytes = 128, .iterations = 10000, .warmup = 200, .per_sample = 1, .timeout_s = 60};
  static const struct option options[] = {
      {"device", required_argument, NULL, 'd'}, {"peers", required_argument, NULL, 'p'},
      {"size", required_argument, NULL, 's'},   {"iterations", required_argument, NULL, 'n'},
      {"warmup", required_argument, NULL, 'w'}, {"timeout", required_argument, NULL, 't'},
      {"per-sample", required_argument, NULL, 'm'},
      {"inline", no_argument, NULL, 'i'},       {"json", no_argument, NULL, 'j'},
      {"help", no_argument, NULL, 'h'},         {NULL, 0, NULL, 0},
  };
  int option;
  while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
    switch (option) {
      case 'd':
        settings.device = optarg;
        break;
      case 'p':
        settings.peer_count = 0;
        for (char* name = strtok(optarg, ","); name != NULL; name = strtok(NULL, ",")) {
          if (settings.peer_count == kMaxPeers) fail("--peers names more than %d devices", kMaxPeers);
          settings.peer_devices[settings.peer_count++] = name;
        }
        break;
      case 's':
        settings.size_bytes = (uint32_t)parse_number("size", optarg, 1, kMaxSizeBytes);
        break;
      case 'n':
        settings.iterations = parse_number("iterations", optarg, 1, kMaxIterations);
        break;
      case 'w':
        settings.warmup = parse_number("warmup", optarg, 0, kMaxIterations);
        break;
      case 'm':
        settings.per_sample = parse_number("per-sample", optarg, 1, kMaxPerSample);
        break;
      case 't':
        settings.timeout_s = parse_number("timeout", optarg, 1, 3600);
        break;
      case 'i':
        settings.inline_data = true;
        break;
      case 'j':
        settings.json = true;
        break;
      case 'h':
        fputs(kUsage, stdout);
        exit(0);
      default:
        fputs(kUsage, stderr);
        exit(2);
    }
  }
  if (optind != argc || settings.device == NULL || settings.peer_count == 0) {
    fputs(kUsage, stderr);
    exit(2);
  }
  if (settings.inline_data && settings.size_bytes > kInlineBytes) {
    fail("--inline takes at most %d bytes", kInlineBytes);
  }
  return settings;
}

int main(int argc, char** argv) {
  const struct settings settings = parse_arguments(argc, argv);
  const uint64_t deadline_ns = now_ns() + (uint64_t)settings.timeout_s * 1000000000u;
  signal(SIGPIPE, SIG_IGN);
  /* Children first: a process that has RDMA objects should not be forked. */
  for (int i = 0; i < settings.peer_count; i++) start_peer(&settings, i, deadline_ns);

  struct end end;
  open_end(&end, settings.device, settings.size_bytes, 64);
  for (int i = 0; i < g_peer_count; i++) {
    struct peer* peer = &g_peers[i];
    read_all(peer->from_child, &peer->remote, sizeof(peer->remote), deadline_ns);
    peer->qp = create_qp(&end, settings.inline_data);
    const struct address own = address_of(&end, peer->qp);
    write_all(peer->to_child, &own, sizeof(own));
    connect_qp(&end, peer->qp, &own, &peer->remote);
    char connected;
    read_all(peer->from_child, &connected, 1, deadline_ns);
  }

  uint64_t* times_ns = calloc((size_t)settings.iterations, sizeof(*times_ns));
  if (times_ns == NULL) fail("no memory for the times of %ld rounds", settings.iterations);
  long round = 0;
  for (; round < settings.warmup; round += settings.per_sample) run_sample(&settings, &end, round, deadline_ns);
  for (long i = 0; i < settings.iterations; i++, round += settings.per_sample) {
    times_ns[i] = run_sample(&settings, &end, round, deadline_ns);
  }
  const long last_round = round - 1;
  for (int i = 0; i < g_peer_count; i++) {
    uint8_t verdict = 0;
    write_all(g_peers[i].to_child, &last_round, sizeof(last_round));
    read_all(g_peers[i].from_child, &verdict, 1, deadline_ns);
    if (verdict != 1) fail("the memory of peer %d does not hold the bytes of the last round", i);
  }
  end_children();

  qsort(times_ns, (size_t)settings.iterations, sizeof(*times_ns), compare_ns);
  const double median_us = percentile_us(times_ns, settings.iterations, 50);
  const double p99_us = percentile_us(times_ns, settings.iterations, 99);
  if (settings.json) {
    printf("{\"medianUs\":%.3f,\"p99Us\":%.3f,\"iterations\":%ld,\"size\":%u}\n", median_us, p99_us,
           settings.iterations, settings.size_bytes);
  } else {
    printf("WRITE of %u bytes from %s to %d peers, %ld rounds: median %.1f us, p99 %.1f us\n", settings.size_bytes,
           settings.device, settings.peer_count, settings.iterations, median_us, p99_us);
  }
  free(times_ns);
  for (int i = 0; i < g_peer_count; i++) ibv_destroy_qp(g_peers[i].qp);
  ibv_dereg_mr(end.region);
  ibv_destroy_cq(end.cq);
  ibv_dealloc_pd(end.domain);
  ibv_close_device(end.context);
  return 0;
}
