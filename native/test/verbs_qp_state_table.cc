// The rules of ibv_modify_qp(3): the man page's table of required attributes sentence by sentence, and what follows
// when it is broken.
#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "verbs/qp_state_table.h"

using namespace quorate;

namespace {

const QpState kStates[] = {QpState::Reset, QpState::Init, QpState::Rtr, QpState::Rts,
                           QpState::Sqd,   QpState::Sqe,  QpState::Err};
const QpType kTypes[] = {QpType::Rc, QpType::Uc, QpType::Ud};

QpAttributes to(QpState state, uint32_t mask) {
  QpAttributes attributes;
  attributes.mask = mask | kQpState;
  attributes.state = state;
  attributes.av.isGlobal = true;
  return attributes;
}

bool allowed(QpType type, QpState from, const QpAttributes& attributes) {
  return !explainQpTransition(type, from, attributes).has_value();
}

std::string explanation(QpType type, QpState from, const QpAttributes& attributes) {
  const auto text = explainQpTransition(type, from, attributes);
  REQUIRE(text.has_value());
  return *text;
}

struct Required {
  QpType type;
  QpState from, to;
  uint32_t mask;
};

// The tables of the man page.
const Required kRequired[] = {
    {QpType::Ud, QpState::Reset, QpState::Init, kQpPkeyIndex | kQpPort | kQpQkey},
    {QpType::Ud, QpState::Init, QpState::Rtr, 0},
    {QpType::Ud, QpState::Rtr, QpState::Rts, kQpSqPsn},
    {QpType::Uc, QpState::Reset, QpState::Init, kQpPkeyIndex | kQpPort | kQpAccessFlags},
    {QpType::Uc, QpState::Init, QpState::Rtr, kQpAv | kQpPathMtu | kQpDestQpn | kQpRqPsn},
    {QpType::Uc, QpState::Rtr, QpState::Rts, kQpSqPsn},
    {QpType::Rc, QpState::Reset, QpState::Init, kQpPkeyIndex | kQpPort | kQpAccessFlags},
    {QpType::Rc, QpState::Init, QpState::Rtr,
     kQpAv | kQpPathMtu | kQpDestQpn | kQpRqPsn | kQpMaxDestRdAtomic | kQpMinRnrTimer},
    {QpType::Rc, QpState::Rtr, QpState::Rts, kQpSqPsn | kQpMaxQpRdAtomic | kQpRetryCnt | kQpRnrRetry | kQpTimeout},
};

}  // namespace

TEST_CASE("the attributes that the man page requires suffice for each step to RTS") {
  for (const Required& row : kRequired) {
    CAPTURE(qpTypeName(row.type));
    CAPTURE(qpStateName(row.to));
    CHECK(allowed(row.type, row.from, to(row.to, row.mask)));
  }
}

TEST_CASE("each required attribute is missed, by name") {
  for (const Required& row : kRequired) {
    for (uint32_t bit = 1; bit != 0; bit <<= 1) {
      if ((row.mask & bit) == 0) continue;
      const std::string text = explanation(row.type, row.from, to(row.to, row.mask & ~bit));
      CHECK(text.find("required but missing: " + qpAttributeNames(bit)) != std::string::npos);
      CHECK(text.find(qpStateName(row.from)) != std::string::npos);
      CHECK(text.find(qpStateName(row.to)) != std::string::npos);
    }
  }
}

TEST_CASE("an attribute that has no place in a transition is refused, by name") {
  for (const Required& row : kRequired) {
    const uint32_t surplus = row.to == QpState::Rtr ? uint32_t{kQpSqPsn} : uint32_t{kQpDestQpn};
    CHECK(explanation(row.type, row.from, to(row.to, row.mask | surplus))
              .find("not allowed here: " + qpAttributeNames(surplus)) != std::string::npos);
  }
  CHECK(explanation(QpType::Rc, QpState::Rts, to(QpState::Err, kQpAccessFlags)).find("ACCESS_FLAGS") !=
        std::string::npos);
  CHECK(explanation(QpType::Rc, QpState::Init, to(QpState::Init, kQpQkey)).find("QKEY") != std::string::npos);
  CHECK(explanation(QpType::Rc, QpState::Rts, to(QpState::Rts, 1u << 25)).find("RATE_LIMIT") != std::string::npos);
  CHECK(explanation(QpType::Rc, QpState::Rts, to(QpState::Rts, 1u << 31)).find("bit 31") != std::string::npos);
}

TEST_CASE("every state can be left for RESET, and every state but RESET for ERR") {
  for (const QpType type : kTypes) {
    for (const QpState from : kStates) {
      CHECK(allowed(type, from, to(QpState::Reset, 0)));
      CHECK(allowed(type, from, to(QpState::Err, 0)) == (from != QpState::Reset));
    }
  }
}

TEST_CASE("no step is skipped or taken backwards, whatever attributes come along") {
  for (const QpType type : kTypes) {
    for (const uint32_t mask : {0u, 0x1fffffu}) {
      CHECK_FALSE(allowed(type, QpState::Reset, to(QpState::Rtr, mask)));
      CHECK_FALSE(allowed(type, QpState::Reset, to(QpState::Rts, mask)));
      CHECK_FALSE(allowed(type, QpState::Init, to(QpState::Rts, mask)));
      CHECK_FALSE(allowed(type, QpState::Rtr, to(QpState::Init, mask)));
      CHECK_FALSE(allowed(type, QpState::Rts, to(QpState::Init, mask)));
      CHECK_FALSE(allowed(type, QpState::Rts, to(QpState::Rtr, mask)));
      CHECK_FALSE(allowed(type, QpState::Err, to(QpState::Init, mask)));
      CHECK_FALSE(allowed(type, QpState::Err, to(QpState::Rts, mask)));
      CHECK_FALSE(allowed(type, QpState::Init, to(QpState::Sqd, mask)));
      CHECK_FALSE(allowed(type, QpState::Rts, to(QpState::Sqe, mask)));
    }
  }
  CHECK(explanation(QpType::Rc, QpState::Err, to(QpState::Rts, 0)).find("it can go to RESET or ERR") !=
        std::string::npos);
}

TEST_CASE("access flags of a connected queue pair change in INIT, on the way to RTR and RTS, and in RTS") {
  for (const QpType type : {QpType::Rc, QpType::Uc}) {
    CHECK(allowed(type, QpState::Init, to(QpState::Init, kQpAccessFlags)));
    CHECK(allowed(type, QpState::Rts, to(QpState::Rts, kQpAccessFlags)));
    CHECK(allowed(type, QpState::Sqd, to(QpState::Rts, kQpAccessFlags)));
    CHECK_FALSE(allowed(type, QpState::Rtr, to(QpState::Rtr, kQpAccessFlags)));
    CHECK_FALSE(allowed(type, QpState::Err, to(QpState::Err, kQpAccessFlags)));
  }
  CHECK_FALSE(allowed(QpType::Ud, QpState::Rts, to(QpState::Rts, kQpAccessFlags)));
}

TEST_CASE("a mask without STATE modifies in place") {
  QpAttributes attributes;
  attributes.mask = kQpAccessFlags;
  CHECK(allowed(QpType::Rc, QpState::Rts, attributes));
  CHECK(explanation(QpType::Rc, QpState::Rtr, attributes).find("cannot be modified in place") != std::string::npos);
}

TEST_CASE("only UC and UD have a state SQE to recover from") {
  CHECK(allowed(QpType::Uc, QpState::Sqe, to(QpState::Rts, kQpCurState | kQpAccessFlags)) ==
        false);  // curState is RESET
  QpAttributes recover = to(QpState::Rts, kQpCurState);
  recover.curState = QpState::Sqe;
  CHECK(allowed(QpType::Uc, QpState::Sqe, recover));
  CHECK(allowed(QpType::Ud, QpState::Sqe, recover));
  CHECK_FALSE(allowed(QpType::Rc, QpState::Sqe, recover));
}

TEST_CASE("a wrong belief about the current state is refused") {
  QpAttributes attributes = to(QpState::Rts, kQpCurState);
  attributes.curState = QpState::Sqd;
  CHECK(explanation(QpType::Rc, QpState::Rts, attributes).find("curState says SQD but the queue pair is in RTS") !=
        std::string::npos);
}

TEST_CASE("values outside their field are refused, by name and bounds") {
  const uint32_t rtr = kQpAv | kQpPathMtu | kQpDestQpn | kQpRqPsn | kQpMaxDestRdAtomic | kQpMinRnrTimer;
  const uint32_t rts = kQpSqPsn | kQpMaxQpRdAtomic | kQpRetryCnt | kQpRnrRetry | kQpTimeout;
  struct Case {
    QpState from, next;
    uint32_t mask;
    void (*spoil)(QpAttributes&);
    const char* expected;
  };
  const Case cases[] = {
      {QpState::Init, QpState::Rtr, rtr, [](QpAttributes& a) { a.pathMtuBytes = 1500; }, "pathMtuBytes is 1500"},
      {QpState::Init, QpState::Rtr, rtr, [](QpAttributes& a) { a.destQpNum = 1u << 24; }, "destQpNum is 16777216"},
      {QpState::Init, QpState::Rtr, rtr, [](QpAttributes& a) { a.rqPsn = 1u << 24; }, "rqPsn is 16777216"},
      {QpState::Init, QpState::Rtr, rtr, [](QpAttributes& a) { a.minRnrTimer = 32; }, "minRnrTimer is 32"},
      {QpState::Init, QpState::Rtr, rtr, [](QpAttributes& a) { a.maxDestRdAtomic = -1; }, "maxDestRdAtomic is -1"},
      {QpState::Init, QpState::Rtr, rtr, [](QpAttributes& a) { a.av.sgidIndex = 256; }, "av.sgidIndex is 256"},
      {QpState::Init, QpState::Rtr, rtr, [](QpAttributes& a) { a.av.hopLimit = -1; }, "av.hopLimit is -1"},
      {QpState::Init, QpState::Rtr, rtr, [](QpAttributes& a) { a.av.flowLabel = 1u << 20; }, "av.flowLabel is 1048576"},
      {QpState::Init, QpState::Rtr, rtr, [](QpAttributes& a) { a.av.sl = 16; }, "av.sl is 16"},
      {QpState::Init, QpState::Rtr, rtr, [](QpAttributes& a) { a.av.portNum = 0; }, "av.portNum is 0"},
      {QpState::Rtr, QpState::Rts, rts, [](QpAttributes& a) { a.timeout = 32; }, "timeout is 32, must be 0 to 31"},
      {QpState::Rtr, QpState::Rts, rts, [](QpAttributes& a) { a.retryCnt = 8; }, "retryCnt is 8, must be 0 to 7"},
      {QpState::Rtr, QpState::Rts, rts, [](QpAttributes& a) { a.rnrRetry = -1; }, "rnrRetry is -1, must be 0 to 7"},
      {QpState::Rtr, QpState::Rts, rts, [](QpAttributes& a) { a.sqPsn = 0xffffffff; }, "sqPsn is 4294967295"},
      {QpState::Rtr, QpState::Rts, rts, [](QpAttributes& a) { a.maxRdAtomic = 256; }, "maxRdAtomic is 256"},
      {QpState::Init, QpState::Init, kQpPort, [](QpAttributes& a) { a.portNum = 0; }, "portNum is 0, must be 1 to 255"},
      {QpState::Init, QpState::Init, kQpPkeyIndex, [](QpAttributes& a) { a.pkeyIndex = 65536; }, "pkeyIndex is 65536"},
      {QpState::Rts, QpState::Rts, kQpAccessFlags, [](QpAttributes& a) { a.accessFlags = 1u << 20; },
       "accessFlags 1048576"},
  };
  for (const Case& one : cases) {
    QpAttributes attributes = to(one.next, one.mask);
    REQUIRE(allowed(QpType::Rc, one.from, attributes));
    one.spoil(attributes);
    CAPTURE(one.expected);
    CHECK(explanation(QpType::Rc, one.from, attributes).find(one.expected) != std::string::npos);
  }
}

TEST_CASE("a value outside its field does not matter where the mask leaves it out") {
  QpAttributes attributes = to(QpState::Rts, kQpAccessFlags);
  attributes.timeout = 99;
  attributes.pathMtuBytes = 7;
  attributes.destQpNum = 0xffffffff;
  CHECK(allowed(QpType::Rc, QpState::Rts, attributes));
}

TEST_CASE("states and types that do not exist are refused") {
  CHECK_FALSE(allowed(QpType::Rc, QpState::Unknown, to(QpState::Reset, 0)));
  CHECK_FALSE(allowed(QpType::Rc, QpState::Rts, to(QpState::Unknown, 0)));
  CHECK_FALSE(allowed(QpType::Rc, QpState::Rts, to(static_cast<QpState>(-3), 0)));
  CHECK_FALSE(allowed(static_cast<QpType>(9), QpState::Reset, to(QpState::Reset, 0)));
}

TEST_CASE("all mistakes are named at once") {
  QpAttributes attributes = to(QpState::Rts, kQpSqPsn | kQpTimeout | kQpDestQpn);
  attributes.timeout = 40;
  CHECK(explanation(QpType::Rc, QpState::Rtr, attributes) ==
        "the RC queue pair in state RTR cannot go to RTS with these attributes: required but missing: RETRY_CNT, "
        "RNR_RETRY, MAX_QP_RD_ATOMIC; given but not allowed here: DEST_QPN; timeout is 40, must be 0 to 31");
}
