// Names and explanations of completion statuses.
#include <doctest/doctest.h>
#include <infiniband/verbs.h>

#include <set>
#include <string>

#include "verbs/verbs.h"

using namespace quorate;

TEST_CASE("every completion status has its ibv_wc_status name") {
  CHECK(wcStatusName(IBV_WC_SUCCESS) == "SUCCESS");
  CHECK(wcStatusName(IBV_WC_LOC_LEN_ERR) == "LOC_LEN_ERR");
  CHECK(wcStatusName(IBV_WC_LOC_QP_OP_ERR) == "LOC_QP_OP_ERR");
  CHECK(wcStatusName(IBV_WC_LOC_EEC_OP_ERR) == "LOC_EEC_OP_ERR");
  CHECK(wcStatusName(IBV_WC_LOC_PROT_ERR) == "LOC_PROT_ERR");
  CHECK(wcStatusName(IBV_WC_WR_FLUSH_ERR) == "WR_FLUSH_ERR");
  CHECK(wcStatusName(IBV_WC_MW_BIND_ERR) == "MW_BIND_ERR");
  CHECK(wcStatusName(IBV_WC_BAD_RESP_ERR) == "BAD_RESP_ERR");
  CHECK(wcStatusName(IBV_WC_LOC_ACCESS_ERR) == "LOC_ACCESS_ERR");
  CHECK(wcStatusName(IBV_WC_REM_INV_REQ_ERR) == "REM_INV_REQ_ERR");
  CHECK(wcStatusName(IBV_WC_REM_ACCESS_ERR) == "REM_ACCESS_ERR");
  CHECK(wcStatusName(IBV_WC_REM_OP_ERR) == "REM_OP_ERR");
  CHECK(wcStatusName(IBV_WC_RETRY_EXC_ERR) == "RETRY_EXC_ERR");
  CHECK(wcStatusName(IBV_WC_RNR_RETRY_EXC_ERR) == "RNR_RETRY_EXC_ERR");
  CHECK(wcStatusName(IBV_WC_LOC_RDD_VIOL_ERR) == "LOC_RDD_VIOL_ERR");
  CHECK(wcStatusName(IBV_WC_REM_INV_RD_REQ_ERR) == "REM_INV_RD_REQ_ERR");
  CHECK(wcStatusName(IBV_WC_REM_ABORT_ERR) == "REM_ABORT_ERR");
  CHECK(wcStatusName(IBV_WC_INV_EECN_ERR) == "INV_EECN_ERR");
  CHECK(wcStatusName(IBV_WC_INV_EEC_STATE_ERR) == "INV_EEC_STATE_ERR");
  CHECK(wcStatusName(IBV_WC_FATAL_ERR) == "FATAL_ERR");
  CHECK(wcStatusName(IBV_WC_RESP_TIMEOUT_ERR) == "RESP_TIMEOUT_ERR");
  CHECK(wcStatusName(IBV_WC_GENERAL_ERR) == "GENERAL_ERR");
  CHECK(wcStatusName(IBV_WC_TM_ERR) == "TM_ERR");
  CHECK(wcStatusName(IBV_WC_TM_RNDV_INCOMPLETE) == "TM_RNDV_INCOMPLETE");
}

TEST_CASE("a status that ibv_wc_status does not name is reported by number") {
  CHECK(wcStatusName(24) == "UNKNOWN_24");
  CHECK(wcStatusName(-1) == "UNKNOWN_-1");
  CHECK(wcStatusExplanation(1000).find("1000") != std::string::npos);
  CHECK(wcStatusExplanation(-7).find("-7") != std::string::npos);
}

TEST_CASE("every status is explained by one sentence of its own") {
  std::set<std::string> explanations;
  for (int status = 0; status <= IBV_WC_TM_RNDV_INCOMPLETE; status++) {
    const std::string text = wcStatusExplanation(status);
    CHECK(text.back() == '.');
    CHECK(explanations.insert(text).second);
  }
}
