// Package webtools searches the web and reads pages, as tools for models.
//
// Search asks providers in their order until one answers: SearXNG's JSON API, Brave and Tavily. Reader fetches a page
// through pkg/fetchguard, which refuses addresses that are not public, and returns its readable text: that of the part
// with the content, without menus, scripts and forms, with headings, lists and tables as plain lines.
//
// A page may be hostile: reading one takes time and memory in proportion to its size. What makes the parser do more
// than that is left out before it sees the page.
//
// Providers are the operator's choice and may be on private addresses, so they are not asked through fetchguard; they
// may not redirect. Keys are read from files for each search, so that they can be rotated, and are part of no error.
//
// Texts come from strangers. The caller has to present them to a model as data (pkg/toolloop does).
package webtools
