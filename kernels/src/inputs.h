// Where each input of the operators is: kernels/OPERATORS.md in code.
#pragma once

namespace stonnx {

constexpr int kExtras = 12;  // inputs for the body alone, after kCount others

namespace attention_input {
enum : int {
  kX, kLengths, kTokenLimit, kPreGamma, kPreBeta, kWq, kSq, kBq, kWk, kSk, kBk, kWv, kSv, kBv, kQGamma, kKGamma, kCos, kSin,
  kPositionBias, kWo, kSo, kBo, kOutGamma, kOutBeta, kResidualScale, kPostGamma, kPostBeta, kCount,
  // After the extras: bundles from before it keep the places of theirs.
  kAttended = kCount + kExtras, kAll
};
}  // namespace attention_input

namespace feed_forward_input {
enum : int {
  kX, kLengths, kPreGamma, kPreBeta, kWUp, kSUp, kBUp, kWGate, kSGate, kBGate, kWDown, kSDown, kBDown, kOutGamma, kOutBeta,
  kResidualScale, kPostGamma, kPostBeta, kCount, kAll = kCount + kExtras
};
}  // namespace feed_forward_input

namespace vocabulary_input {
enum : int { kX, kLengths, kTable, kScale, kCount, kAll = kCount + kExtras };
}  // namespace vocabulary_input

constexpr const char* kAttentionNames[] = {
    "x", "lengths", "token_limit", "pre_gamma", "pre_beta", "w_q", "s_q", "b_q", "w_k", "s_k", "b_k", "w_v", "s_v", "b_v",
    "q_gamma", "k_gamma", "cos", "sin", "position_bias", "w_o", "s_o", "b_o", "out_gamma", "out_beta", "residual_scale",
    "post_gamma", "post_beta"};
constexpr const char* kFeedForwardNames[] = {
    "x", "lengths", "pre_gamma", "pre_beta", "w_up", "s_up", "b_up", "w_gate", "s_gate", "b_gate", "w_down", "s_down", "b_down",
    "out_gamma", "out_beta", "residual_scale", "post_gamma", "post_beta"};
constexpr const char* kVocabularyNames[] = {"x", "lengths", "table", "s_table"};
static_assert(sizeof kVocabularyNames / sizeof *kVocabularyNames == vocabulary_input::kCount, "a name for each input");
static_assert(sizeof kAttentionNames / sizeof *kAttentionNames == attention_input::kCount, "a name for each input");
static_assert(sizeof kFeedForwardNames / sizeof *kFeedForwardNames == feed_forward_input::kCount, "a name for each input");

}  // namespace stonnx
