// The rules of ibv_modify_qp(3) as data: which attributes each transition of a queue pair requires and which it also
// takes. A device answers every mistake with a bare EINVAL; this table turns it into a sentence that names the
// transition and the attributes that are missing, surplus or out of range. The shm provider enforces the table; the
// ibverbs provider consults it only to explain (and to refuse early what every device must refuse).
#pragma once

#include <optional>
#include <string>

#include "verbs/verbs.h"

namespace quorate {

// Nothing if a queue pair of `type` that is in state `from` may be modified with exactly these attributes; else a
// sentence that says what is wrong. A mask without kQpState leaves the state as it is.
std::optional<std::string> explainQpTransition(QpType type, QpState from, const QpAttributes& attributes);

std::string qpStateName(QpState state);  // "RESET", "INIT", "RTR", ...; "UNKNOWN" for anything else
std::string qpTypeName(QpType type);     // "RC", "UC", "UD"; "UNKNOWN" for anything else
// "STATE, PKEY_INDEX, PORT": the attributes of a mask in the order of their bits, under the names of ibv_qp_attr_mask
// without the IBV_QP_ prefix; bits that have no name there as "bit <n>".
std::string qpAttributeNames(uint32_t mask);

}  // namespace quorate
