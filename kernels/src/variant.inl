// The end of every variant's file: its functions and its entry in the table.
#ifndef GROUP_BYTES
#define GROUP_BYTES 4
#endif
namespace {

bool attention(const AttentionBlock& b, const AttentionCall& c) {
#if HAS_BF16
  if (b.shared.bf16) return run_attention<Form::kBFloat16>(b, c);
#endif
  return run_attention<HAS_INT16 ? Form::kInt16 : Form::kInt8>(b, c);
}

bool feed_forward(const FeedForwardBlock& b, const FeedForwardCall& c) {
#if HAS_BF16
  if (b.shared.bf16) return run_feed_forward<Form::kBFloat16>(b, c);
#endif
  return run_feed_forward<HAS_INT16 ? Form::kInt16 : Form::kInt8>(b, c);
}

bool vocabulary(const VocabularyBlock& b, const VocabularyCall& c) {
#if HAS_BF16
  if (b.bf16) return run_vocabulary<Form::kBFloat16>(b, c);
#endif
  return run_vocabulary<HAS_INT16 ? Form::kInt16 : Form::kInt8>(b, c);
}

}  // namespace

extern const Variant VARIANT;
const Variant VARIANT = {VARIANT_NAME, HAS_INT16 ? Form::kInt16 : Form::kInt8, GROUP_BYTES, HAS_BF16, VARIANT_MISSING, attention,
                         feed_forward, vocabulary};
