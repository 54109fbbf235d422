package auth

import (
	"slices"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// Verb is what a method or route does.
type Verb string

// The verbs.
const (
	Generate Verb = "generate" // generate text, read it again, cancel it
	Embed    Verb = "embed"    // embeddings, scores
	Tokenize Verb = "tokenize" // text to tokens and back
	Models   Verb = "models"   // list models and what they can do
	Batch    Verb = "batch"    // files and batches of requests
	Train    Verb = "train"    // start, watch and end training runs, and fetch their files
	Observe  Verb = "observe"  // hosts, pipelines, metrics
	Operate  Verb = "operate"  // change what is served
	Keys     Verb = "keys"     // list, make, rotate and revoke API keys, whatever those may do
	Probe    Verb = "probe"    // health and readiness
	Page     Verb = "page"     // the files of the console, and descriptions of APIs
)

// Verbs lists all verbs.
func Verbs() []Verb {
	return []Verb{Generate, Embed, Tokenize, Models, Batch, Train, Observe, Operate, Keys, Probe, Page}
}

// Role is a set of verbs for people and programs.
type Role string

// The roles.
const (
	User     Role = "user"     // uses models
	Trainer  Role = "trainer"  // runs trainings
	Operator Role = "operator" // watches and changes the mesh, and makes keys
	Program  Role = "service"  // acts for others: it may name the tenant of each request
)

// Roles lists all roles.
func Roles() []Role { return []Role{User, Trainer, Operator, Program} }

// Verbs returns what a role may do.
func (r Role) Verbs() []Verb {
	switch r {
	case User:
		return []Verb{Generate, Embed, Tokenize, Models, Batch, Page}
	case Trainer:
		return []Verb{Train, Tokenize, Models, Page}
	case Operator:
		return []Verb{Observe, Operate, Keys, Probe, Models, Train, Page}
	case Program:
		return []Verb{Generate, Embed, Tokenize, Models, Batch, Observe, Probe, Page}
	}
	return nil
}

// ParseRole returns the role of a name.
func ParseRole(name string) (Role, error) {
	if r := Role(name); slices.Contains(Roles(), r) {
		return r, nil
	}
	return "", fault.Field("role", "unknown role %q: want %s", name, join(Roles()))
}

// ParseVerb returns the verb of a name.
func ParseVerb(name string) (Verb, error) {
	if v := Verb(name); slices.Contains(Verbs(), v) {
		return v, nil
	}
	return "", fault.Field("verb", "unknown verb %q: want %s", name, join(Verbs()))
}

func join[S ~string](names []S) string {
	var texts []string
	for _, n := range names {
		texts = append(texts, string(n))
	}
	return strings.Join(texts, ", ")
}

// Service is a kind of process of a mesh. Its certificate names it.
type Service string

// The services.
const (
	RouterService    Service = "router"
	TokenizerService Service = "tokenizer"
	SamplerService   Service = "sampler"
	ShardService     Service = "shard"
	TrainerService   Service = "trainer"
	MonitorService   Service = "monitor" // asks for health only, such as a Consul agent
)

// Services lists all services.
func Services() []Service {
	return []Service{RouterService, TokenizerService, SamplerService, ShardService, TrainerService, MonitorService}
}
