// The rules of ibv_modify_qp(3) as data, and the sentences made from them. The required attributes are those of the
// man page; the optional ones and the remaining transitions (into SQD, ERR and RESET, and from a state to itself) are
// those of the InfiniBand specification's "QP State Transition Properties", which the Linux kernel enforces for most
// devices.
#include "verbs/qp_state_table.h"

#include <array>
#include <cstdint>
#include <vector>

namespace quorate {
namespace {

struct AttributeRules {
  uint32_t required = 0;
  uint32_t optional = 0;
};

struct Transition {
  QpState from;
  QpState to;
  AttributeRules rc, uc, ud;
};

// Attributes that describe the connection, as one word each where several transitions share them.
constexpr uint32_t kConnectedInit = kQpPkeyIndex | kQpPort | kQpAccessFlags;
constexpr uint32_t kDatagramInit = kQpPkeyIndex | kQpPort | kQpQkey;
constexpr uint32_t kUcRtr = kQpAv | kQpPathMtu | kQpDestQpn | kQpRqPsn;
constexpr uint32_t kRcRtr = kUcRtr | kQpMaxDestRdAtomic | kQpMinRnrTimer;
constexpr uint32_t kRcRts = kQpTimeout | kQpRetryCnt | kQpRnrRetry | kQpSqPsn | kQpMaxQpRdAtomic;
constexpr uint32_t kRcRunning = kQpCurState | kQpAccessFlags | kQpMinRnrTimer;
constexpr uint32_t kUcRunning = kQpCurState | kQpAccessFlags;
constexpr uint32_t kUdRunning = kQpCurState | kQpQkey;
constexpr uint32_t kRcDrained = kQpPort | kQpAv | kQpTimeout | kQpRetryCnt | kQpRnrRetry | kQpMaxQpRdAtomic |
                                kQpMaxDestRdAtomic | kQpAccessFlags | kQpPkeyIndex | kQpMinRnrTimer;

// Transitions that are absent are not allowed. Every state reaches RESET; every state but RESET reaches ERR: those are
// not listed, see rulesFor().
const Transition kTransitions[] = {
    {QpState::Reset, QpState::Init, {kConnectedInit, 0}, {kConnectedInit, 0}, {kDatagramInit, 0}},
    {QpState::Init, QpState::Init, {0, kConnectedInit}, {0, kConnectedInit}, {0, kDatagramInit}},
    {QpState::Init,
     QpState::Rtr,
     {kRcRtr, kQpAccessFlags | kQpPkeyIndex},
     {kUcRtr, kQpAccessFlags | kQpPkeyIndex},
     {0, kQpPkeyIndex | kQpQkey}},
    {QpState::Rtr, QpState::Rts, {kRcRts, kRcRunning}, {kQpSqPsn, kUcRunning}, {kQpSqPsn, kUdRunning}},
    {QpState::Rts, QpState::Rts, {0, kRcRunning}, {0, kUcRunning}, {0, kUdRunning}},
    {QpState::Rts, QpState::Sqd, {0, 0}, {0, 0}, {0, 0}},
    {QpState::Sqd, QpState::Rts, {0, kRcRunning}, {0, kUcRunning}, {0, kUdRunning}},
    // UC could take AV here by the specification, but the Linux kernel adds PORT to it, which UC may not change:
    // refused.
    {QpState::Sqd, QpState::Sqd, {0, kRcDrained}, {0, kQpAccessFlags | kQpPkeyIndex}, {0, kQpPkeyIndex | kQpQkey}},
    // A send error stops an RC queue pair altogether (ERR), so SQE exists for UC and UD only.
    {QpState::Sqe, QpState::Rts, {0, 0}, {0, kUcRunning}, {0, kUdRunning}},
};

bool isKnownState(QpState state) {
  return static_cast<int>(state) >= 0 && static_cast<int>(state) < 7;
}
bool isKnownType(QpType type) {
  return type == QpType::Rc || type == QpType::Uc || type == QpType::Ud;
}

std::optional<AttributeRules> rulesFor(QpType type, QpState from, QpState to) {
  if (to == QpState::Reset) return AttributeRules{};
  if (to == QpState::Err && from != QpState::Reset) return AttributeRules{};
  if (type == QpType::Rc && from == QpState::Sqe) return std::nullopt;
  for (const Transition& transition : kTransitions) {
    if (transition.from != from || transition.to != to) continue;
    return type == QpType::Rc ? transition.rc : type == QpType::Uc ? transition.uc : transition.ud;
  }
  return std::nullopt;
}

std::string joined(const std::vector<std::string>& words, const char* separator, const char* lastSeparator) {
  std::string text;
  for (size_t i = 0; i < words.size(); i++) {
    if (i > 0) text += i + 1 == words.size() ? lastSeparator : separator;
    text += words[i];
  }
  return text;
}

// "INIT, RTS or ERR": where a queue pair of this type can go from here, for a message that says what to do instead.
std::string reachableStates(QpType type, QpState from) {
  std::vector<std::string> names;
  for (int to = 0; to < 7; to++) {
    if (rulesFor(type, from, static_cast<QpState>(to))) names.push_back(qpStateName(static_cast<QpState>(to)));
  }
  return joined(names, ", ", " or ");
}

class RangeChecker {
 public:
  RangeChecker(uint32_t mask, std::vector<std::string>* problems) : mask_(mask), problems_(problems) {}

  void within(uint32_t bit, const char* name, int64_t value, int64_t least, int64_t most) {
    if ((mask_ & bit) == 0 || (value >= least && value <= most)) return;
    problems_->push_back(std::string(name) + " is " + std::to_string(value) + ", must be " + std::to_string(least) +
                         " to " + std::to_string(most));
  }

 private:
  const uint32_t mask_;
  std::vector<std::string>* const problems_;
};

std::vector<std::string> outOfRange(QpState from, const QpAttributes& a) {
  constexpr int64_t kMax24Bits = 0xffffff;
  constexpr uint32_t kAllAccess =
      kAccessLocalWrite | kAccessRemoteWrite | kAccessRemoteRead | kAccessRemoteAtomic | kAccessMwBind;
  std::vector<std::string> problems;
  RangeChecker check(a.mask, &problems);
  if ((a.mask & kQpCurState) != 0 && a.curState != from) {
    problems.push_back("curState says " + qpStateName(a.curState) + " but the queue pair is in " + qpStateName(from));
  }
  if ((a.mask & kQpAccessFlags) != 0 && (a.accessFlags & ~kAllAccess) != 0) {
    problems.push_back("accessFlags " + std::to_string(a.accessFlags) + " has bits outside " +
                       std::to_string(kAllAccess));
  }
  check.within(kQpPkeyIndex, "pkeyIndex", a.pkeyIndex, 0, 0xffff);
  check.within(kQpPort, "portNum", a.portNum, 1, 255);
  check.within(kQpAv, "av.portNum", a.av.portNum, 1, 255);
  check.within(kQpAv, "av.sl", a.av.sl, 0, 15);
  if (a.av.isGlobal) {
    check.within(kQpAv, "av.sgidIndex", a.av.sgidIndex, 0, 255);
    check.within(kQpAv, "av.hopLimit", a.av.hopLimit, 0, 255);
    check.within(kQpAv, "av.flowLabel", a.av.flowLabel, 0, 0xfffff);
  }
  if ((a.mask & kQpPathMtu) != 0 && a.pathMtuBytes != 256 && a.pathMtuBytes != 512 && a.pathMtuBytes != 1024 &&
      a.pathMtuBytes != 2048 && a.pathMtuBytes != 4096) {
    problems.push_back("pathMtuBytes is " + std::to_string(a.pathMtuBytes) + ", must be 256, 512, 1024, 2048 or 4096");
  }
  check.within(kQpTimeout, "timeout", a.timeout, 0, 31);
  check.within(kQpRetryCnt, "retryCnt", a.retryCnt, 0, 7);
  check.within(kQpRnrRetry, "rnrRetry", a.rnrRetry, 0, 7);
  check.within(kQpRqPsn, "rqPsn", a.rqPsn, 0, kMax24Bits);
  check.within(kQpSqPsn, "sqPsn", a.sqPsn, 0, kMax24Bits);
  check.within(kQpMaxQpRdAtomic, "maxRdAtomic", a.maxRdAtomic, 0, 255);
  check.within(kQpMaxDestRdAtomic, "maxDestRdAtomic", a.maxDestRdAtomic, 0, 255);
  check.within(kQpMinRnrTimer, "minRnrTimer", a.minRnrTimer, 0, 31);
  check.within(kQpDestQpn, "destQpNum", a.destQpNum, 0, kMax24Bits);
  return problems;
}

}  // namespace

std::string qpStateName(QpState state) {
  switch (state) {
    case QpState::Reset:
      return "RESET";
    case QpState::Init:
      return "INIT";
    case QpState::Rtr:
      return "RTR";
    case QpState::Rts:
      return "RTS";
    case QpState::Sqd:
      return "SQD";
    case QpState::Sqe:
      return "SQE";
    case QpState::Err:
      return "ERR";
    case QpState::Unknown:
      break;
  }
  return "UNKNOWN";
}

std::string qpTypeName(QpType type) {
  switch (type) {
    case QpType::Rc:
      return "RC";
    case QpType::Uc:
      return "UC";
    case QpType::Ud:
      return "UD";
  }
  return "UNKNOWN";
}

std::string qpAttributeNames(uint32_t mask) {
  static constexpr std::array<const char*, 32> kNames = {
      "STATE",
      "CUR_STATE",
      "EN_SQD_ASYNC_NOTIFY",
      "ACCESS_FLAGS",
      "PKEY_INDEX",
      "PORT",
      "QKEY",
      "AV",
      "PATH_MTU",
      "TIMEOUT",
      "RETRY_CNT",
      "RNR_RETRY",
      "RQ_PSN",
      "MAX_QP_RD_ATOMIC",
      "ALT_PATH",
      "MIN_RNR_TIMER",
      "SQ_PSN",
      "MAX_DEST_RD_ATOMIC",
      "PATH_MIG_STATE",
      "CAP",
      "DEST_QPN",
      nullptr,
      nullptr,
      nullptr,
      nullptr,
      "RATE_LIMIT",
  };
  std::vector<std::string> names;
  for (unsigned bit = 0; bit < 32; bit++) {
    if ((mask >> bit & 1u) == 0) continue;
    names.push_back(kNames[bit] != nullptr ? kNames[bit] : "bit " + std::to_string(bit));
  }
  return joined(names, ", ", ", ");
}

std::optional<std::string> explainQpTransition(QpType type, QpState from, const QpAttributes& attributes) {
  if (!isKnownType(type)) {
    return "a queue pair of type " + std::to_string(static_cast<int>(type)) + " has no known states; use RC, UC or UD";
  }
  if (!isKnownState(from)) {
    return "the state the " + qpTypeName(type) +
           " queue pair is in is not known to the device; destroy it and create a new one";
  }
  const bool changesState = (attributes.mask & kQpState) != 0;
  const QpState to = changesState ? attributes.state : from;
  if (!isKnownState(to)) {
    return "the " + qpTypeName(type) + " queue pair in state " + qpStateName(from) + " cannot go to state number " +
           std::to_string(static_cast<int>(to)) + ", which does not exist";
  }

  const std::string what = "the " + qpTypeName(type) + " queue pair in state " + qpStateName(from) +
                           (to == from ? " cannot be modified in place" : " cannot go to " + qpStateName(to));
  const std::optional<AttributeRules> rules = rulesFor(type, from, to);
  if (!rules) return what + "; from " + qpStateName(from) + " it can go to " + reachableStates(type, from);

  std::vector<std::string> problems;
  const uint32_t missing = rules->required & ~attributes.mask;
  const uint32_t surplus = attributes.mask & ~(rules->required | rules->optional | kQpState);
  if (missing != 0) problems.push_back("required but missing: " + qpAttributeNames(missing));
  if (surplus != 0) problems.push_back("given but not allowed here: " + qpAttributeNames(surplus));
  for (std::string& problem : outOfRange(from, attributes)) problems.push_back(std::move(problem));
  if (problems.empty()) return std::nullopt;
  return what + " with these attributes: " + joined(problems, "; ", "; ");
}

}  // namespace quorate
