// manifests.js has the manifests with which the form of a new run begins. base is the name of a model that is served and
// that the trainer knows by its name; without one, paths stand for the model.

const optimizer = { learning_rate: { max: 0.003, min: 0.0003, warmup: 20 }, betas: [0.9, 0.95], decay: 0.1, clip: 1 };

export const manifests = (base) => ({
  scratch: {
    title: "A small model from scratch",
    manifest: {
      name: "from-scratch",
      data: { text: "text.txt", validation_fraction: 0.05 },
      vocabulary: { type: "bpe", size: 1024 },
      model: { architecture: "llama", layers: 4, width: 128, heads: 4, kv_heads: 2, ff: 352, context: 128, tied: true },
      slots: 4, slot_sequences: 2, sequence_len: 128, steps: 300, ...optimizer, seed: 1,
      evaluate_every: 50, checkpoint_every: 100, samples: { every: 50, prompts: ["The "], tokens: 40 },
    },
  },
  ...(base && { served: {
    title: `Fine-tune ${base} on a text, with an adapter (LoRA)`,
    manifest: {
      name: "mine",
      data: { text: "text.txt", validation_fraction: 0.05 },
      vocabulary: { type: "model" },
      model: { from: base },
      adapter: { rank: 16, alpha: 32, target_modules: "all-linear" },
      slots: 4, slot_sequences: 1, sequence_len: 128, steps: 100,
      ...optimizer, learning_rate: { max: 0.002, min: 0.0002, warmup: 10 }, decay: 0, seed: 1,
      evaluate_every: 20, checkpoint_every: 100, samples: { every: 20, prompts: ["The "], tokens: 40 }, publish: { name: "mine" },
    },
  } }),
  adapter: {
    title: "An adapter (LoRA) on a model, from encoded examples",
    manifest: {
      name: "adapter",
      data: { examples: "examples.jsonl", validation_fraction: 0.05 },
      vocabulary: { type: "model" },
      model: { from: base || "models/base.gguf" },
      adapter: { rank: 16, alpha: 32, target_modules: "all-linear" },
      slots: 4, slot_sequences: 1, sequence_len: 512, steps: 200,
      ...optimizer, learning_rate: { max: 0.0002, min: 0.00002, warmup: 10 }, decay: 0, seed: 1,
      evaluate_every: 50, checkpoint_every: 100, publish: { name: "mine" },
    },
  },
  tune: {
    title: "All weights of a model, on a text",
    manifest: {
      name: "tuned",
      data: { text: "text.txt", validation_fraction: 0.05 },
      vocabulary: { type: "model" },
      model: { from: base || "models/base" },
      slots: 4, slot_sequences: 1, sequence_len: 256, steps: 200,
      ...optimizer, learning_rate: { max: 0.0003, min: 0.00003, warmup: 10 }, seed: 1,
      evaluate_every: 50, checkpoint_every: 100, samples: { every: 50, prompts: ["The "], tokens: 40 },
    },
  },
});
