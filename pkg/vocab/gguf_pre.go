package vocab

// ggufPre returns the pre-tokenizer for a name in tokenizer.ggml.pre.
type ggufPre struct {
	steps      []step
	wholeWords bool // a piece that is a token is not merged (ignore_merges)
	wholeLines bool // a run of line feeds that is a token is not merged
	raw        bool // tokens are plain UTF-8 with "▁" for a space, not GPT-2's byte alphabet
	addBOS     bool // default of add_bos_token
}

// Patterns without a hand-written scanner, as the tokenizers' authors publish them.
const (
	patternDeepSeekLetters = `\s?[A-Za-z\x{B5}\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{1BA}\x{1BC}-\x{1BF}\x{1C4}-\x{293}\x{295}-\x{2AF}\x{370}-\x{373}\x{376}\x{377}\x{37B}-\x{37D}\x{37F}\x{386}\x{388}-\x{38A}\x{38C}\x{38E}-\x{3A1}\x{3A3}-\x{3F5}\x{3F7}-\x{481}\x{48A}-\x{52F}\x{531}-\x{556}\x{10A0}-\x{10C5}\x{13A0}-\x{13F5}\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA}\x{1CBD}-\x{1CBF}\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77}\x{1D79}-\x{1D9A}\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D}\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D}\x{1F50}-\x{1F57}\x{1F59}\x{1F5B}\x{1F5D}\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}\x{1FB6}-\x{1FBC}\x{1FBE}\x{1FC2}-\x{1FC4}\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC}\x{1FF2}-\x{1FF4}\x{1FF6}-\x{1FFC}\x{2102}\x{2107}\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}\x{2124}\x{2126}\x{2128}\x{212A}-\x{212D}\x{212F}-\x{2134}\x{2139}\x{213C}-\x{213F}\x{2145}-\x{2149}\x{214E}\x{2183}\x{2184}\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4}\x{2CEB}-\x{2CEE}\x{2CF2}\x{2CF3}\x{A640}-\x{A66D}\x{A680}-\x{A69B}\x{A722}-\x{A76F}\x{A771}-\x{A787}\x{A78B}-\x{A78E}\x{AB70}-\x{ABBF}\x{FB00}-\x{FB06}\x{FB13}-\x{FB17}\x{FF21}-\x{FF3A}\x{FF41}-\x{FF5A}\x{10400}-\x{1044F}\x{104B0}-\x{104D3}\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2}\x{118A0}-\x{118DF}\x{1E900}-\x{1E943}]+`
	patternDeepSeekMarks   = `\s?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3000}-\x{3002}]+`
	patternDeepSeekHan     = `[\x{4E00}-\x{9FA5}\x{800}-\x{4E00}\x{AC00}-\x{D7FF}]+`
	patternBloom           = ` ?[^(\s|.,!?\x{2026}\x{3002}\x{FF0C}\x{3001}\x{964}\x{6D4}\x{60C})]+`
	patternYoutu           = `[\x{AC00}-\x{D7A3}\x{3131}-\x{318E}]+|[\x{FF01}\x{2026}\x{201C}\x{201D}\x{2018}\x{2019}\x{2014}\x{FF1A}\x{FF1B}\x{FF0C}\x{3001}-\x{303F}\x{FE30}-\x{FE4F}]+|[\x{3105}-\x{312F}]+|[\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+`
	patternAfmoeAsian      = `[\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{F900}-\x{FAFF}\x{3040}-\x{309F}\x{30A0}-\x{30FF}\x{FF65}-\x{FF9F}\x{2F00}-\x{2FDF}\x{E40}-\x{E7F}\x{E80}-\x{EFF}\x{1780}-\x{17FF}\x{1000}-\x{109F}\x{AA60}-\x{AA7F}\x{A9E0}-\x{A9FF}\x{AC00}-\x{D7AF}\x{1100}-\x{11FF}]+`
	patternAfmoeDigits     = `\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))`
	patternAyaDigits       = `\d{1,3}(?=(?:\d{3})*\b)`
	patternSuperDigits     = `(?=(\d{3})+(?!\d))`
	patternJais2           = `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}`
	patternSeedCoder       = `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+`
	patternSpark           = `[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_\x60{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+`
	patternExaoneMoe       = `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+`
)

// ggufPreTokenizer returns the pre-tokenizer that a GGUF file names in tokenizer.ggml.pre. The
// names are those that llama.cpp knows; the error names any other.
func ggufPreTokenizer(name string) (p ggufPre, err error) {
	scanners := func(s ...scanner) {
		for _, x := range s {
			p.steps = append(p.steps, scan{x})
		}
	}
	styles := func(st style) scanner { return &st }
	patterns := func(src ...string) {
		for _, s := range src {
			if known := knownPattern(s); known != nil {
				scanners(known)
				continue
			}
			p.steps = append(p.steps, &splitter{find: findPattern(mustCompile(s)), behavior: isolated})
		}
	}
	number := func(limit int) scanner { return newIsolate(runs(classNumber, "", 0, limit)) }
	switch name {
	case "", "default":
		scanners(newIsolate(runs(classPunct, "$+<=>^~|", 0, 0)), styles(styleGPT2()), number(0),
			newIsolate(threeDigits))
	case "gpt-2", "gpt2", "phi-2", "mpt", "olmo", "jais", "trillion", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de",
		"gigachat", "a.x-4.0", "exaone4", "granite-docling", "mellum", "modern-bert", "roberta-bpe", "jina-v1-en",
		"jina-v2-code":
		scanners(styles(styleGPT2()))
	case "smollm", "starcoder", "refact", "command-r", "cohere2_moe", "codeshell", "exaone", "minerva-7b", "mellum2":
		scanners(number(1), styles(styleGPT2()))
	case "llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano":
		p.wholeWords, p.addBOS = true, true
		scanners(styles(styleLlama3()))
	case "dbrx", "smaug-bpe", "chatglm-bpe", "glm4":
		scanners(styles(styleLlama3()))
	case "qwen2", "stablelm2", "deepseek-r1-qwen", "kormo", "megrez", "openpangu", "f2llmv2", "hunyuan",
		"solar-open", "grok-2":
		scanners(styles(styleQwen2()))
	case "bailingmoe", "bailingmoe2", "llada-moe":
		scanners(styles(styleQwen2()))
	case "laguna":
		scanners(newIsolate(lineEnds), styles(styleQwen2()))
	case "ufakzeka": // Turkish suffixes stay attached to their apostrophe
		st := styleQwen2()
		st.contractions = false
		scanners(styles(st))
	case "minicpm5":
		p.wholeWords = true
		st := styleQwen2()
		st.digits = 0
		scanners(number(3), styles(st))
	case "gemma4", "granite-embed-multi-311m":
		p.raw, p.wholeLines, p.addBOS = true, true, true
		scanners(newIsolate(lineEnds))
	case "sarvam-moe":
		p.raw = true
		scanners(newIsolate(lineEnds))
	case "qwen35":
		scanners(styles(styleQwen35()))
	case "gpt-4o", "llama4", "kanana2", "o200k", "minimax-m2", "talkie":
		scanners(styles(styleO200k()))
	case "granite-embed-multi-97m":
		p.wholeWords = true
		scanners(styles(styleO200k()))
	case "tekken":
		p.wholeWords, p.addBOS = true, true
		scanners(styles(styleTekken()))
	case "kimi-k2":
		scanners(styles(styleKimi()))
	case "falcon":
		scanners(newIsolate(runs(classPunct, "$+<=>^~|`", 0, 0)), styles(styleGPT2()), newIsolate(threeDigits))
	case "deepseek-llm":
		patterns(`[\r\n]`, patternDeepSeekLetters, patternDeepSeekMarks, `\s+$`, patternDeepSeekHan, `\p{N}+`)
	case "deepseek-coder":
		patterns(`[\r\n]`, `\s?\p{L}+`, `\s?\p{P}+`, patternDeepSeekHan, `\p{N}`)
	case "deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4":
		scanners(number(3), newIsolate(between([2]rune{0x4e00, 0x9fa5}, [2]rune{0x3040, 0x30ff})),
			styles(styleDeepSeek3()))
	case "spark2_5":
		scanners(number(3), newIsolate(between([2]rune{0x4e00, 0x9fa5}, [2]rune{0x3040, 0x30ff})))
		patterns(patternSpark)
		scanners(number(1))
	case "youtu":
		p.wholeWords = true
		st := styleO200k()
		st.digits = 1
		patterns(patternYoutu)
		scanners(styles(st))
	case "poro-chat", "bloom", "gpt3-finnish":
		patterns(patternBloom)
	case "viking":
		patterns(patternBloom, `\p{N}`)
	case "jais-2":
		patterns(patternJais2)
	case "tiny_aya", "cohere2moe":
		patterns(patternAyaDigits)
		scanners(styles(styleO200k()))
	case "superbpe":
		patterns(`\p{N}+`, patternSuperDigits)
	case "seed-coder":
		patterns(patternSeedCoder)
	case "exaone-moe":
		patterns(patternExaoneMoe)
	case "afmoe":
		patterns(patternAfmoeDigits, patternAfmoeAsian)
		scanners(styles(styleDeepSeek3()))
	case "chameleon":
		p.addBOS = true
		patterns(`<sentinel:[0-9]+>`, `(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z`, `([\t\n]|    |  )`, `\p{N}`,
			"[\\p{P}!-/:-@\\[-`{-~]")
		scanners(styles(styleGPT2()))
	default:
		return p, unsupported(keyPre, "unknown pre-tokenizer %q", name)
	}
	return p, nil
}
