# Lamina on Nomad. Consul runs beside Nomad on each client; the services register themselves there, with health checks
# of their own, so the tasks have no `service` block for Consul to know twice.
#
#   nomad job run -var models=/srv/models -var tokenizer=model.gguf lamina.nomad.hcl
#
# Each client has the files of `lamina certs init` in the folder `certs`, issued for the clients' addresses.

variable "datacenters" {
  type    = list(string)
  default = ["dc1"]
}

variable "binary" {
  type        = string
  default     = "/usr/local/bin/lamina"
  description = "The lamina binary on each client."
}

variable "models" {
  type        = string
  default     = "/var/lib/lamina/models"
  description = "Folder of GGUF files and model folders on each client."
}

variable "tokenizer" {
  type        = string
  default     = "model.gguf"
  description = "File or folder below `models` whose vocabulary the tokenizers serve."
}

variable "certs" {
  type        = string
  default     = "/etc/lamina/certs"
  description = "Folder of certificates on each client."
}

variable "keys" {
  type        = string
  default     = "/etc/lamina/keys.json"
  description = "File of API keys on the clients that run routers."
}

variable "nats" {
  type    = string
  default = "nats://nats.service.consul:4222"
}

variable "shards" {
  type    = number
  default = 3
}

variable "shard_memory" {
  type        = number
  default     = 16384
  description = "Memory of a shard's task in MiB; 85 % of it is for weights and KV caches."
}

job "lamina" {
  datacenters = var.datacenters
  type        = "service"

  update {
    max_parallel      = 1
    health_check      = "task_states"
    min_healthy_time  = "15s"
    healthy_deadline  = "10m"
    progress_deadline = "30m"
  }

  group "front" {
    count = 2

    constraint {
      operator = "distinct_hosts"
      value    = "true"
    }

    network {
      mode = "host"
      port "router" { static = 7070 }
      port "http" { static = 8080 }
      port "tokenizer" { static = 7071 }
      port "sampler" { static = 7072 }
    }

    task "router" {
      driver       = "raw_exec"
      kill_timeout = "30s" # requests may run for 20 s after a stop

      config {
        command = var.binary
        args = [
          "router",
          "--listen=${NOMAD_ADDR_router}",
          "--http=${NOMAD_ADDR_http}",
          "--nats=${var.nats}",
          "--auth-keys=${var.keys}",
          "--adapter-dir=${NOMAD_ALLOC_DIR}/adapters",
          "--batch-dir=${NOMAD_ALLOC_DIR}/batches",
          "--tls-cert=${var.certs}/router.pem",
          "--tls-key=${var.certs}/router.key",
          "--tls-ca=${var.certs}/ca.pem",
        ]
      }

      resources {
        cpu    = 1000
        memory = 1024
      }
    }

    task "tokenizer" {
      driver = "raw_exec"

      config {
        command = var.binary
        args = [
          "tokenizer",
          "--listen=${NOMAD_ADDR_tokenizer}",
          "--model=${var.models}/${var.tokenizer}",
          "--tls-cert=${var.certs}/tokenizer.pem",
          "--tls-key=${var.certs}/tokenizer.key",
          "--tls-ca=${var.certs}/ca.pem",
        ]
      }

      resources {
        cpu    = 300
        memory = 512
      }
    }

    task "sampler" {
      driver = "raw_exec"

      config {
        command = var.binary
        args = [
          "sampler",
          "--listen=${NOMAD_ADDR_sampler}",
          "--tls-cert=${var.certs}/sampler.pem",
          "--tls-key=${var.certs}/sampler.key",
          "--tls-ca=${var.certs}/ca.pem",
        ]
      }

      resources {
        cpu    = 500
        memory = 512
      }
    }
  }

  group "shards" {
    count = var.shards

    constraint {
      operator = "distinct_hosts"
      value    = "true"
    }

    # A shard that is lost is replaced; its streams have moved on long before.
    reschedule {
      delay          = "5s"
      delay_function = "exponential"
      max_delay      = "5m"
      unlimited      = true
    }

    network {
      mode = "host"
      port "shard" { static = 7073 }
    }

    task "shard" {
      driver       = "raw_exec"
      kill_timeout = "30s"

      config {
        command = var.binary
        args = [
          "shard",
          "--listen=${NOMAD_ADDR_shard}",
          "--auto",
          "--model-dir=${var.models}",
          "--memory-limit=${floor(var.shard_memory * 85 / 100)}MiB",
          "--train",
          "--nats=${var.nats}",
          "--tls-cert=${var.certs}/shard.pem",
          "--tls-key=${var.certs}/shard.key",
          "--tls-ca=${var.certs}/ca.pem",
        ]
      }

      resources {
        cpu    = 4000
        memory = var.shard_memory
      }
    }
  }

  group "trainer" {
    network {
      mode = "host"
      port "trainer" { static = 7074 }
    }

    # Runs stay where they are when the job is updated.
    ephemeral_disk {
      size    = 20480
      sticky  = true
      migrate = true
    }

    task "trainer" {
      driver       = "raw_exec"
      kill_timeout = "2m" # the current step and its checkpoint

      config {
        command = var.binary
        args = [
          "trainer",
          "--listen=${NOMAD_ADDR_trainer}",
          "--dir=${NOMAD_ALLOC_DIR}/data/runs",
          "--data=${NOMAD_ALLOC_DIR}/data/texts",
          "--tls-cert=${var.certs}/trainer.pem",
          "--tls-key=${var.certs}/trainer.key",
          "--tls-ca=${var.certs}/ca.pem",
        ]
      }

      resources {
        cpu    = 500
        memory = 1024
      }
    }
  }
}
