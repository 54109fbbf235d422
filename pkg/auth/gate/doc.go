// Package gate is the one middleware in front of all HTTP routes. For each request it checks, in this order:
//
//  1. Host and Origin, so that a website cannot drive a Lamina on the visitor's machine: neither from its own origin
//     nor by a name that it lets resolve to 127.0.0.1 (DNS rebinding). There is no CORS unless the operator lists
//     origins, and no cookie anywhere.
//  2. The caller, by "Authorization: Bearer KEY", "x-api-key: KEY", a client certificate, or HTTP's Basic scheme with
//     the key as the password, which is how a browser opens the console.
//  3. The policy of the route (auth.Routes). A path without one does not exist.
//  4. The tenant, which comes from the key, and the budget of requests.
//
// Steps 2 to 4 are left out if there is no guard. Handlers find the principal and the tenant in the context.
package gate
