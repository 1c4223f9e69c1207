//! deploy/kubernetes.

use crate::compose::{has_stores, host_and_port};
use crate::facts::{Facts, Files, Probe, Read, Start};
use crate::image::environment;
use crate::yaml::{at, documents, pairs, text, texts};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

const FOLDER: &str = "deploy/kubernetes/";

/// (kind, name) → manifest.
type Objects = BTreeMap<(String, String), Value>;

pub(crate) fn check(files: &Files, facts: &Facts, read: &mut Read) {
    let mut objects = Objects::new();
    let mut listed: BTreeSet<String> = BTreeSet::new();
    let mut found: BTreeSet<String> = BTreeSet::new();
    for (file, content) in files.iter().filter(|(name, _)| name.starts_with(FOLDER)) {
        let documents = match documents(content) {
            Ok(documents) => documents,
            Err(error) => {
                read.wrong(format!("{file}: {error}"));
                continue;
            }
        };
        for object in documents {
            let kind = text(at(&object, "kind"));
            if kind == "Kustomization" {
                listed.extend(texts(at(&object, "resources")));
                continue;
            }
            found.insert(file.trim_start_matches(FOLDER).to_owned());
            let version = match kind.as_str() {
                "Deployment" | "StatefulSet" => "apps/v1",
                "PodDisruptionBudget" => "policy/v1",
                "ConfigMap" | "Service" | "PersistentVolumeClaim" => "v1",
                _ => "",
            };
            read.must(at(&object, "apiVersion") == version, || format!("{file}: {kind} is not of version {version}"));
            let name = text(at(&object, "metadata/name"));
            read.must(objects.insert((kind.clone(), name.clone()), object).is_none(), || format!("{file}: {kind} {name} twice"));
        }
    }
    read.must(listed == found, || format!("{FOLDER}kustomization.yaml lists {listed:?}, there are {found:?}"));
    let guide = &files["docs/deployment.md"];
    let workloads = objects.iter().filter(|((kind, _), _)| ["Deployment", "StatefulSet"].contains(&kind.as_str()));
    let deployments: Vec<&Value> = workloads.map(|(_, object)| object).collect();
    let mut parts = BTreeSet::new();
    for deployment in &deployments {
        parts.extend(texts(at(deployment, "spec/template/spec/containers/0/args")).into_iter().nth(1));
        pod(deployment, &objects, guide, files, facts, read);
        if at(deployment, "kind") == "StatefulSet" {
            let service = text(at(deployment, "spec/serviceName"));
            let known = objects.contains_key(&("Service".to_owned(), service.clone()));
            read.must(known, || format!("{FOLDER}: a StatefulSet names the Service {service}, which is not there"));
        }
    }
    let expected = ["ingest", "pipelines", "query", "sinks"].map(str::to_owned);
    read.must(parts == BTreeSet::from(expected), || format!("{FOLDER}: the parts {parts:?} are deployed"));
    for ((kind, name), object) in &objects {
        let selector = match kind.as_str() {
            "Service" => at(object, "spec/selector"),
            "PodDisruptionBudget" => at(object, "spec/selector/matchLabels"),
            _ => continue,
        };
        let Some(chosen) = deployments.iter().find(|d| at(d, "spec/template/metadata/labels") == selector) else {
            read.wrong(format!("{FOLDER}: {kind} {name} selects no pod"));
            continue;
        };
        for port in at(object, "spec/ports").as_array().into_iter().flatten() {
            let target = text(at(port, "targetPort"));
            read.must(port_of(chosen, &target).is_some(), || format!("{FOLDER}: Service {name}: no port {target}"));
        }
        // A budget that allows nothing keeps nodes from being emptied.
        let replicas = at(chosen, "spec/replicas").as_u64().unwrap_or(1);
        let least = at(object, "spec/minAvailable").as_u64().unwrap_or(0);
        read.must(least < replicas, || format!("{FOLDER}: PodDisruptionBudget {name} allows no disruption"));
    }
    let budgets = objects.keys().filter(|(kind, _)| kind == "PodDisruptionBudget").count();
    read.must(budgets == deployments.len(), || format!("{FOLDER}: {} deployments, {budgets} budgets", deployments.len()));
}

/// The number of a container's port by its name.
fn port_of(deployment: &Value, name: &str) -> Option<u64> {
    let ports = at(deployment, "spec/template/spec/containers/0/ports").as_array()?;
    ports.iter().find(|port| at(port, "name") == name).and_then(|port| at(port, "containerPort").as_u64())
}

fn pod(deployment: &Value, objects: &Objects, guide: &str, files: &Files, facts: &Facts, read: &mut Read) {
    let name = text(at(deployment, "metadata/name"));
    let place = format!("{FOLDER}{name}");
    let spec = at(deployment, "spec/template/spec");
    read.must(at(deployment, "spec/selector/matchLabels") == at(deployment, "spec/template/metadata/labels"), || {
        format!("{place}: does not select its own pods")
    });
    let containers = at(spec, "containers").as_array().cloned().unwrap_or_default();
    read.must(containers.len() == 1 && at(spec, "initContainers").is_null(), || format!("{place}: not one container"));
    let Some(container) = containers.first() else { return };
    read.findings.extend(facts.image(&place, &text(at(container, "image"))));
    for (path, wanted) in [("runAsNonRoot", Value::Bool(true)), ("seccompProfile/type", "RuntimeDefault".into())] {
        let has = at(spec, &format!("securityContext/{path}"));
        read.must(*has == wanted, || format!("{place}: securityContext {path} is {has}"));
    }
    let uid = at(spec, "securityContext/runAsUser").as_u64().unwrap_or(0);
    read.must(uid > 0 && files["Dockerfile"].contains(&format!("USER {uid}:")), || {
        format!("{place}: user {uid} is root or not the image's")
    });
    for (path, wanted) in [
        ("readOnlyRootFilesystem", Value::Bool(true)),
        ("allowPrivilegeEscalation", Value::Bool(false)),
        ("capabilities/drop/0", "ALL".into()),
    ] {
        let has = at(container, &format!("securityContext/{path}"));
        read.must(*has == wanted, || format!("{place}: securityContext {path} is {has}"));
    }
    for path in ["requests/cpu", "requests/memory", "limits/cpu", "limits/memory"] {
        read.must(!at(container, &format!("resources/{path}")).is_null(), || format!("{place}: resources have no {path}"));
    }
    let grace = at(spec, "terminationGracePeriodSeconds").as_u64().unwrap_or(30);
    let before = at(container, "lifecycle/preStop/sleep/seconds").as_u64().unwrap_or(0);
    read.must(grace >= 45 + before, || format!("{place}: {grace} s are too little to drain"));
    for (probe, path) in
        [("startupProbe", "/health/live"), ("livenessProbe", "/health/live"), ("readinessProbe", "/health/ready")]
    {
        let asked = at(container, &format!("{probe}/httpGet"));
        read.must(at(asked, "path") == path, || format!("{place}: {probe} does not ask {path}"));
        match port_of(deployment, &text(at(asked, "port"))) {
            Some(port) => read.probes.push(Probe { place: format!("{place} {probe}"), path: text(at(asked, "path")), port }),
            None => read.wrong(format!("{place}: {probe}: no port {}", at(asked, "port"))),
        }
    }
    let mut environment = environment(&files["Dockerfile"]);
    for source in at(container, "envFrom").as_array().into_iter().flatten() {
        let map = text(at(source, "configMapRef/name"));
        match objects.get(&("ConfigMap".to_owned(), map.clone())) {
            Some(map) => environment.extend(pairs(at(map, "data")).map(|(n, v)| (n.clone(), text(v)))),
            None => read.wrong(format!("{place}: there is no config map {map}")),
        }
    }
    for pair in at(container, "env").as_array().into_iter().flatten() {
        environment.insert(text(at(pair, "name")), text(at(pair, "value")));
    }
    let mounted = volumes(&place, deployment, container, objects, guide, facts, read);
    let findings = facts.environment(&place, &environment, &mounted);
    read.findings.extend(findings);
    for variable in ["QUIKFLOW_TOPOLOGIES", "QUIKFLOW_DATA"] {
        let path = environment.get(variable).cloned().unwrap_or_default();
        let there = at(container, "volumeMounts").as_array().into_iter().flatten().map(|mount| text(at(mount, "mountPath")));
        read.must(there.into_iter().any(|mount| path.starts_with(&mount)), || {
            format!("{place}: nothing is mounted at {variable}={path}")
        });
    }
    if let Some(owner) = environment.get("QUIKFLOW_EMBEDDED_STORES_URL") {
        read.must(answers_for_stores(owner, objects), || format!("{place}: no process has embedded stores at {owner}"));
    }
    read.starts.push(Start { place, args: texts(at(container, "args")), environment });
}

/// Whether a Service is there, on that port, whose pods have embedded stores.
fn answers_for_stores(owner: &str, objects: &Objects) -> bool {
    let Some((host, port)) = host_and_port(owner) else { return false };
    let Some(service) = objects.get(&("Service".to_owned(), host)) else { return false };
    let open = at(service, "spec/ports").as_array().into_iter().flatten().any(|open| at(open, "port").as_u64() == Some(port));
    let chosen = at(service, "spec/selector");
    let mut args = objects.iter().filter(|((kind, _), _)| kind == "Deployment").filter_map(|(_, deployment)| {
        let fits = at(deployment, "spec/template/metadata/labels") == chosen;
        fits.then(|| texts(at(deployment, "spec/template/spec/containers/0/args")))
    });
    open && args.any(|args| has_stores(&args))
}

/// The files that secrets are mounted as; what is mounted has to exist.
fn volumes(
    place: &str,
    deployment: &Value,
    container: &Value,
    objects: &Objects,
    guide: &str,
    facts: &Facts,
    read: &mut Read,
) -> BTreeSet<String> {
    let mut files = BTreeSet::new();
    let claims = at(deployment, "spec/volumeClaimTemplates").as_array().into_iter().flatten();
    let claims: BTreeSet<String> = claims.map(|claim| text(at(claim, "metadata/name"))).collect();
    let volumes = at(deployment, "spec/template/spec/volumes").as_array().cloned().unwrap_or_default();
    for mount in at(container, "volumeMounts").as_array().into_iter().flatten() {
        let name = text(at(mount, "name"));
        if claims.contains(&name) {
            continue;
        }
        let Some(volume) = volumes.iter().find(|volume| at(volume, "name") == name.as_str()) else {
            read.wrong(format!("{place}: there is no volume {name}"));
            continue;
        };
        for (source, kind, command) in [
            ("configMap/name", "ConfigMap", "create configmap"),
            ("secret/secretName", "Secret", "create secret generic"),
            ("persistentVolumeClaim/claimName", "PersistentVolumeClaim", "no command makes a claim"),
        ] {
            let Some(wanted) = at(volume, source).as_str() else { continue };
            let made =
                objects.contains_key(&(kind.to_owned(), wanted.to_owned())) || guide.contains(&format!("{command} {wanted} "));
            read.must(made, || format!("{place}: nothing makes the {kind} {wanted}"));
            if kind == "Secret" {
                files.extend(facts.secrets.keys().map(|secret| format!("{}/{secret}", text(at(mount, "mountPath")))));
            }
        }
    }
    files
}
