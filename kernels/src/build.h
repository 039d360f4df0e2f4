// Blocks from nodes, shared by all sessions of the process that have the same weights.
#pragma once
#include <memory>

#include "block.h"
#include "node.h"
#include "pack.h"

namespace stonnx {

enum class Weights : int { kInt8, kBFloat16, kFloat };

// How a variant wants weights.
Layout layout_of(const Variant& variant, Weights weights);

struct Attention {
  AttentionBlock block{};
  Pool pool;
};

struct FeedForward {
  FeedForwardBlock block{};
  Pool pool;
};

struct Vocabulary {
  VocabularyBlock block{};
  Pool pool;
};

// Null, with node.error(), if the node makes no sense.
std::shared_ptr<Attention> build_attention(Node& node, Weights weights, Layout layout);
std::shared_ptr<FeedForward> build_feed_forward(Node& node, Weights weights, Layout layout);
std::shared_ptr<Vocabulary> build_vocabulary(Node& node, Weights weights, Layout layout);

}  // namespace stonnx
