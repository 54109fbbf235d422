package auth

// Rule is the policy of a gRPC method or HTTP route.
type Rule struct {
	Verb     Verb      // what people and programs need
	Services []Service // services that may call it, besides
	Metered  bool      // counts against the budgets of a key
	Audited  bool      // is written to the audit log
}

func metered(v Verb) Rule               { return Rule{Verb: v, Metered: true} }
func audited(v Verb) Rule               { return Rule{Verb: v, Audited: true} }
func only(v Verb, s ...Service) Rule    { return Rule{Verb: v, Services: s} }
func counted(v Verb, s ...Service) Rule { return Rule{Verb: v, Services: s, Metered: true} }
func internal(services ...Service) Rule { return Rule{Services: services} }

// Methods returns the policy of every gRPC method of every service, by its full name. A rule without a verb is
// for services alone.
func Methods() map[string]Rule {
	rules := map[string]Rule{}
	add := func(service string, methods map[string]Rule) {
		for name, rule := range methods {
			rules["/"+service+"/"+name] = rule
		}
	}
	add("lamina.router.v1.RouterService", map[string]Rule{
		// A trainer whose objective has rewards samples at a router, from an adapter that it loads there.
		"Generate": {Verb: Generate, Services: []Service{TrainerService}, Metered: true},
		"Chat":     metered(Generate), "Resume": only(Generate), "Cancel": only(Generate),
		"ListModels": only(Models), "Topology": only(Observe), "WatchTopology": only(Observe),
		"Embed": metered(Embed), "ListAdapters": only(Models),
		"UnloadAdapter": {Verb: Operate, Services: []Service{TrainerService}, Audited: true},
		"LoadAdapter":   {Verb: Operate, Services: []Service{TrainerService}, Audited: true},
		"Deploy":        audited(Operate), "Undeploy": audited(Operate), "ListDeployments": only(Observe),
	})
	add("lamina.trainer.v1.TrainerService", map[string]Rule{
		// A router asks on behalf of the users of its console, whose rights it has checked.
		"StartRun":      {Verb: Train, Services: []Service{RouterService}, Audited: true},
		"StopRun":       {Verb: Train, Services: []Service{RouterService}, Audited: true},
		"PauseRun":      {Verb: Train, Services: []Service{RouterService}, Audited: true},
		"ResumeRun":     {Verb: Train, Services: []Service{RouterService}, Audited: true},
		"DeleteRun":     {Verb: Train, Services: []Service{RouterService}, Audited: true},
		"WatchRun":      only(Train),
		"ListRuns":      only(Train, RouterService),
		"ListArtifacts": only(Train, RouterService),
		"FetchArtifact": only(Train, RouterService),
	})
	add("lamina.tokenizer.v1.TokenizerService", map[string]Rule{
		"Encode":            counted(Tokenize, RouterService, TrainerService),
		"EncodeBatch":       counted(Tokenize, RouterService, TrainerService),
		"EncodeStream":      counted(Tokenize, RouterService, TrainerService),
		"Decode":            counted(Tokenize, RouterService, TrainerService),
		"DecodeStream":      counted(Tokenize, RouterService, TrainerService),
		"ApplyChatTemplate": counted(Tokenize, RouterService, TrainerService),
		"Tokens":            only(Tokenize, RouterService, TrainerService),
		"Describe":          only(Tokenize, RouterService, TrainerService),
		"TrainVocabulary":   audited(Train),
	})
	add("lamina.sampler.v1.SamplerService", map[string]Rule{
		"Sample": internal(RouterService), "Push": internal(ShardService),
	})
	add("lamina.shard.v1.ShardService", map[string]Rule{
		"Describe": internal(RouterService, TrainerService), "Infer": internal(RouterService, ShardService),
		"Train": internal(TrainerService), "SaveState": internal(TrainerService), "Exchange": internal(ShardService),
		"Embed":       internal(RouterService),
		"LoadAdapter": internal(RouterService), "UnloadAdapter": internal(RouterService),
		"Assign": internal(RouterService), "Unload": internal(RouterService), "Prefetch": internal(RouterService),
		"Ping":   internal(RouterService, ShardService),
		"Reduce": internal(ShardService),
	})
	add("lamina.weights.v1.WeightsService", map[string]Rule{
		"ListModels": internal(ShardService, TokenizerService), "Describe": internal(ShardService, TokenizerService),
		"FetchChunk": internal(ShardService, TokenizerService),
	})
	add("grpc.health.v1.Health", map[string]Rule{
		"Check": only(Probe, Services()...), "Watch": only(Probe, Services()...), "List": only(Probe, Services()...),
	})
	for _, version := range []string{"v1", "v1alpha"} {
		add("grpc.reflection."+version+".ServerReflection", map[string]Rule{"ServerReflectionInfo": only(Page)})
	}
	add("inference.GRPCInferenceService", map[string]Rule{ // KServe's
		"ServerLive": only(
			Probe,
		),
		"ServerReady":      only(Probe),
		"ModelReady":       only(Models),
		"ServerMetadata":   only(Models),
		"ModelMetadata":    only(Models),
		"ModelInfer":       metered(Generate),
		"ModelStreamInfer": metered(Generate),
	})
	return rules
}

// Routes returns the policy of every HTTP route, by its pattern for http.ServeMux.
func Routes() map[string]Rule {
	return map[string]Rule{
		"GET /healthz": only(Probe, Services()...),
		"GET /readyz":  only(Probe, Services()...),
		"GET /metrics": only(Observe, MonitorService),

		// the console
		"GET /{$}":                            only(Page),
		"GET /console/{file}":                 only(Page),
		"GET /api/access":                     only(Page),
		"GET /api/topology":                   only(Observe),
		"GET /api/runs":                       only(Train),
		"POST /api/runs":                      audited(Train),
		"POST /api/runs/{run}/stop":           audited(Train),
		"POST /api/runs/{run}/pause":          audited(Train),
		"POST /api/runs/{run}/resume":         audited(Train),
		"DELETE /api/runs/{run}":              audited(Train),
		"GET /api/runs/{run}/files":           only(Train),
		"GET /api/runs/{run}/files/{name...}": only(Train),
		"GET /api/keys":                       only(Keys),
		"POST /api/keys":                      audited(Keys),
		"POST /api/keys/{key}/rotate":         audited(Keys),
		"POST /api/keys/{key}/revoke":         audited(Keys),
		"GET /api/store":                      only(Operate),
		"DELETE /api/store/{model}":           audited(Operate),
		"POST /api/store/{model}/load":        audited(Operate),
		"GET /api/pulls":                      only(Operate),
		"POST /api/pulls":                     audited(Operate),
		"DELETE /api/pulls/{pull}":            audited(Operate),
		"POST /api/adapters":                  audited(Operate),
		"DELETE /api/adapters/{adapter}":      audited(Operate),

		// OpenAI
		"GET /v1/models":                     only(Models),
		"GET /v1/models/{id...}":             only(Models),
		"POST /v1/completions":               metered(Generate),
		"POST /v1/chat/completions":          metered(Generate),
		"GET /v1/requests/{id}/stream":       only(Generate),
		"DELETE /v1/requests/{id}":           only(Generate),
		"POST /v1/responses":                 metered(Generate),
		"GET /v1/responses/{id}":             only(Generate),
		"GET /v1/responses/{id}/input_items": only(Generate),
		"DELETE /v1/responses/{id}":          only(Generate),
		"POST /v1/embeddings":                metered(Embed),
		// What a batch runs counts against the budgets of its owner, request by request.
		"POST /v1/files":               only(Batch),
		"GET /v1/files":                only(Batch),
		"GET /v1/files/{id}":           only(Batch),
		"GET /v1/files/{id}/content":   only(Batch),
		"DELETE /v1/files/{id}":        only(Batch),
		"POST /v1/batches":             only(Batch),
		"GET /v1/batches":              only(Batch),
		"GET /v1/batches/{id}":         only(Batch),
		"POST /v1/batches/{id}/cancel": only(Batch),
		"POST /v1/rerank":              metered(Embed),
		"POST /v1/score":               metered(Embed),

		// Anthropic
		"POST /v1/messages":              metered(Generate),
		"POST /v1/messages/count_tokens": metered(Tokenize),

		// Ollama
		"POST /api/chat":       metered(Generate),
		"POST /api/generate":   metered(Generate),
		"POST /api/embed":      metered(Embed),
		"POST /api/embeddings": metered(Embed),
		"GET /api/tags":        only(Models),
		"POST /api/show":       only(Models),
		"GET /api/ps":          only(Models),
		"GET /api/version":     only(Models),
		"POST /api/pull":       audited(Operate),

		// vLLM
		"POST /tokenize":   metered(Tokenize),
		"POST /detokenize": metered(Tokenize),
		"POST /rerank":     metered(Embed),
		"POST /score":      metered(Embed),

		// KServe
		"GET /v2":                       only(Models),
		"GET /v2/health/live":           only(Probe, Services()...),
		"GET /v2/health/ready":          only(Probe, Services()...),
		"GET /v2/models/{model}":        only(Models),
		"GET /v2/models/{model}/ready":  only(Models),
		"POST /v2/models/{model}/infer": metered(Generate),

		"GET /openapi.json": only(Page),
	}
}

// AdminRoutes returns the policy of the listener for administrators, by its patterns.
func AdminRoutes() map[string]Rule {
	return map[string]Rule{
		"GET /{$}": only(Operate), "GET /build": only(Operate), "GET /config": only(Operate),
		"GET /debug/pprof/{$}": only(Operate), "GET /debug/pprof/{profile}": only(Operate),
		"GET /loglevel": only(Operate), "PUT /loglevel": audited(Operate),
	}
}
