package consul

import (
	"fmt"
	"slices"
)

// Policies returns the ACL rules that each kind of service needs, in Consul's language, by the kind. A service may
// register its own kind alone, and see the services of Lamina. Those that hold locks may do that too.
func Policies() map[string]string {
	kinds, lockers := []string{"router", "tokenizer", "sampler", "shard", "trainer"}, []string{"router", "trainer"}
	policies := map[string]string{}
	for _, kind := range kinds {
		rules := fmt.Sprintf(`# What a %[1]s of Lamina needs in Consul:
# consul acl policy create -name lamina-%[1]s -rules @%[1]s.hcl
# consul acl token create -policy-name lamina-%[1]s
service %[2]q { policy = "write" }
service_prefix %[3]q { policy = "read" }
node_prefix "" { policy = "read" }
agent_prefix "" { policy = "read" }
`, kind, prefix+kind, prefix)
		if slices.Contains(lockers, kind) {
			rules += fmt.Sprintf(`session_prefix "" { policy = "write" }
key_prefix %q { policy = "write" }
`, keyPrefix)
		}
		if kind == "router" { // one of them writes the plan, and each of them what it has let in
			rules += fmt.Sprintf("key_prefix %q { policy = \"write\" }\n", valuePrefix)
		}
		policies[kind] = rules
	}
	return policies
}
