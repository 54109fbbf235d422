// Prints the perplexity of a text under a GGUF model, computed by llama.cpp's library as its program llama-perplexity
// does: windows of -c ids, of which the second half counts, each with a begin-of-text id in the place of its first id
// where the vocabulary adds one. It needs libllama and ggml alone, which build in a fraction of the program's time.
//
//   g++ -O2 -std=c++17 -I LLAMA/include -I LLAMA/ggml/include perplexity.cpp -o perplexity BUILD/src/libllama.a \
//       BUILD/ggml/src/libggml.a BUILD/ggml/src/libggml-cpu.a BUILD/ggml/src/libggml-base.a -lpthread -ldl
//   perplexity -m MODEL -f TEXT [-c 512] [--chunks N] [-t THREADS]
//
// Keys and values are float32, without flash attention. Options of llama-perplexity that say so (-ctk f32 -ctv f32
// -fa off) are accepted; any other one is an error.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "llama.h"

[[noreturn]] static void fail(const std::string & what) {
    std::fprintf(stderr, "perplexity: %s\n", what.c_str());
    std::exit(1);
}

static void only_errors(ggml_log_level level, const char * text, void *) {
    if (level == GGML_LOG_LEVEL_ERROR) {
        std::fputs(text, stderr);
    }
}

int main(int argc, char ** argv) {
    std::string model_path, text_path;
    int n_ctx = 512, chunks = -1, threads = 1;
    for (int i = 1; i < argc; i++) {
        const std::string name = argv[i];
        if (++i == argc) {
            fail("no value for " + name);
        }
        const std::string value = argv[i];
        if (name == "-m") {
            model_path = value;
        } else if (name == "-f") {
            text_path = value;
        } else if (name == "-c") {
            n_ctx = std::stoi(value);
        } else if (name == "--chunks") {
            chunks = std::stoi(value);
        } else if (name == "-t") {
            threads = std::stoi(value);
        } else if (!((name == "-ctk" || name == "-ctv") && value == "f32") && !(name == "-fa" && value == "off")) {
            fail("unknown option " + name + " " + value);
        }
    }
    if (n_ctx < 4) {
        fail("-c: want 4 or more");
    }

    llama_log_set(only_errors, nullptr);
    llama_backend_init();
    llama_model * model = llama_model_load_from_file(model_path.c_str(), llama_model_default_params());
    if (!model) {
        fail("cannot load " + model_path);
    }
    const llama_vocab * vocab = llama_model_get_vocab(model);
    llama_context_params params = llama_context_default_params();
    params.n_ctx = params.n_batch = params.n_ubatch = n_ctx;
    params.n_threads = params.n_threads_batch = threads;
    params.type_k = params.type_v = GGML_TYPE_F32;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    llama_context * ctx = llama_init_from_model(model, params);
    if (!ctx) {
        fail("cannot make a context");
    }

    std::ifstream file(text_path, std::ios::binary);
    if (!file) {
        fail("cannot read " + text_path);
    }
    std::string text{std::istreambuf_iterator<char>(file), {}};
    if (!text.empty() && text.back() == '\n') {  // as the option -f of llama.cpp's programs does
        text.pop_back();
    }
    std::vector<llama_token> ids(text.size() + 2);
    const int n = llama_tokenize(vocab, text.data(), text.size(), ids.data(), ids.size(), true, false);
    if (n < 0) {
        fail("cannot tokenize the text");
    }
    ids.resize(n);
    const int n_chunk = chunks < 0 ? n / n_ctx : std::min(chunks, n / n_ctx);
    if (n_chunk == 0) {
        fail("the text has fewer ids than one window");
    }

    const int n_vocab = llama_vocab_n_tokens(vocab), first = n_ctx / 2;
    llama_batch batch = llama_batch_init(n_ctx, 0, 1);
    double nll = 0;
    long count = 0;
    for (int chunk = 0; chunk < n_chunk; chunk++) {
        const llama_token * window = ids.data() + chunk * n_ctx;
        llama_memory_clear(llama_get_memory(ctx), true);
        batch.n_tokens = n_ctx;
        for (int i = 0; i < n_ctx; i++) {
            batch.token[i] = i == 0 && llama_vocab_get_add_bos(vocab) ? llama_vocab_bos(vocab) : window[i];
            batch.pos[i] = i;
            batch.n_seq_id[i] = 1;
            batch.seq_id[i][0] = 0;
            batch.logits[i] = i >= first;
        }
        if (llama_decode(ctx, batch) != 0) {
            fail("cannot compute a window");
        }
        for (int i = first; i < n_ctx - 1; i++) {
            const float * logits = llama_get_logits_ith(ctx, i);
            const float top = *std::max_element(logits, logits + n_vocab);
            double sum = 0;
            for (int v = 0; v < n_vocab; v++) {
                sum += std::exp(double(logits[v] - top));
            }
            nll += std::log(sum) + top - logits[window[i + 1]];
            count++;
        }
    }
    std::printf("PPL = %.6f\n", std::exp(nll / count));
    llama_batch_free(batch);
    llama_free(ctx);
    llama_model_free(model);
}
