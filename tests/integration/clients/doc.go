// Package clients holds programs in other languages that use Lamina as its users do: with stubs
// generated from proto/ and packages from public registries. Its test runs them against `lamina
// up`. It needs LAMINA_CLIENTS=1 (make clients-test), because it installs packages.
package clients
