// archive.js keeps conversations in this browser, in IndexedDB. Nothing of them is stored on the router.

const open = () => new Promise((resolve, reject) => {
  const request = indexedDB.open("lamina", 1);
  request.onupgradeneeded = () => request.result.createObjectStore("conversations", { keyPath: "id" });
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error);
});

let database;

async function run(mode, use) {
  database ||= open();
  const store = (await database).transaction("conversations", mode).objectStore("conversations");
  return new Promise((resolve, reject) => {
    const request = use(store);
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

// all returns the conversations, the latest first.
export const all = async () => (await run("readonly", (s) => s.getAll())).sort((a, b) => b.updated - a.updated);
export const put = (conversation) => run("readwrite", (s) => s.put(conversation));
export const drop = (id) => run("readwrite", (s) => s.delete(id));
