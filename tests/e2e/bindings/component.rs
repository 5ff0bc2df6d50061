//! How a component is found, told its settings and looked after.

use thalweg_proto::{bindings::Empty, status::Code};

use crate::support::{
    binding::{metadata, proxy, yaml},
    child::Folder,
    client::Client,
    component::{Component, Traits, ready, refuse, reply},
    proxy::TestProxy,
    upstream::{Call, Upstream, echo},
    within,
};

const READY: &str = "thalweg_binding_component_ready{binding=\"it\"}";
const INITS: &str = "thalweg_binding_component_inits_total{binding=\"it\"}";

fn binding(component: &Component, more: &str) -> String {
    let address = &component.address;
    format!("it: {{component: {{address: \"{address}\"{more}}}}}")
}

/// Ends a stream well.
async fn fine(mut call: Call) {
    let mut outgoing = call.respond();
    while call.told().await.is_some() {}
    outgoing.trailers(&[("grpc-status", "0")]);
}

// === settings ===

#[tokio::test]
async fn component_is_told_its_settings_and_nothing_passes_before() {
    let mut component = Traits::streaming().hold_init().start().await;
    let yaml = binding(
        &component,
        ", instance: orders, metadata: {password: secret, Url: x}",
    );
    let proxy = proxy(&[&yaml]).await;
    let client = Client::connect(&proxy).await;

    let (headers, init) = component.init().await;
    assert_eq!(headers["x-component-instance"], "orders");
    assert!(!headers["content-type"].is_empty());
    assert_eq!(
        init.metadata.unwrap().properties,
        metadata(&[("password", "secret"), ("Url", "x")])
    );
    let held = component.held_init().await;
    assert_eq!(client.stream("it", &[]).await.code(), Code::Unavailable);
    assert!(!component.has_call());

    reply(held, &Empty {}).await;
    ready(&proxy, "it").await;
    let asked = component.asked();
    assert_eq!(asked, ["ServerReflectionInfo", "Init", "ListOperations"]);
    let (answer, ()) = tokio::join!(client.stream("it", &[]), async {
        let call = component.call().await;
        assert_eq!(call.headers()["x-component-instance"], "orders");
        fine(call).await;
    });
    assert_eq!(answer.code(), Code::Ok);
}

#[tokio::test]
async fn init_that_fails_is_told_to_clients_who_may_know_and_tried_again() {
    let mut component = Traits::streaming().hold_init().start().await;
    let yaml = yaml(&[&binding(&component, "")]);
    let yaml = yaml.replace("{name: it, ", "{name: it, error_details: true, ");
    let proxy = TestProxy::start(&yaml).await;
    let client = Client::connect(&proxy).await;

    refuse(&mut component.held_init().await, "3", "no password");
    let held = component.held_init().await;
    let answer = client.stream("it", &[]).await;
    assert_eq!(answer.code(), Code::Unavailable);
    assert!(answer.text().contains("no password"), "{}", answer.text());

    reply(held, &Empty {}).await;
    ready(&proxy, "it").await;
    assert_eq!(proxy.metric(INITS).await, 1);
}

#[tokio::test]
async fn component_that_restarts_is_told_its_settings_anew() {
    let component = Component::start().await;
    let address = component.address.clone();
    let proxy = proxy(&[&binding(&component, ", metadata: {a: b}")]).await;
    let client = Client::connect(&proxy).await;
    ready(&proxy, "it").await;

    component.kill();
    proxy.metric_is(READY, 0).await;
    let answer = client.stream("it", &[]).await;
    assert_eq!(answer.code(), Code::Unavailable);

    let mut component = Traits::streaming().hold_init().start_at(&address).await;
    let (_, init) = component.init().await;
    assert_eq!(init.metadata.unwrap().properties, metadata(&[("a", "b")]));
    let held = component.held_init().await;
    assert_eq!(client.stream("it", &[]).await.code(), Code::Unavailable);
    assert!(!component.has_call(), "a stream came before Init was done");
    reply(held, &Empty {}).await;
    ready(&proxy, "it").await;
    let (answer, ()) = tokio::join!(client.stream("it", &[]), async {
        fine(component.call().await).await;
    });
    assert_eq!(answer.code(), Code::Ok);
}

#[tokio::test]
async fn component_that_was_replaced_by_an_older_one_is_asked_again_what_it_knows() {
    let mut component = Component::start().await;
    let address = component.address.clone();
    let proxy = proxy(&[&binding(&component, "")]).await;
    let client = Client::connect(&proxy).await;
    ready(&proxy, "it").await;
    let (answer, ()) = tokio::join!(client.stream("it", &[]), async {
        fine(component.call().await).await;
    });
    assert_eq!(answer.code(), Code::Ok);

    component.kill();
    proxy.metric_is(READY, 0).await;
    let mut component = Traits::unary().start_at(&address).await;
    ready(&proxy, "it").await;

    let mut call = client.invoke("it", &[]).await;
    call.outgoing.end();
    assert!(component.call().await.path().ends_with("/Invoke"));
}

// === health ===

#[tokio::test]
async fn component_that_does_not_answer_pings_well_is_not_used() {
    let component = Component::start().await;
    let proxy = proxy(&[&binding(&component, ", ping: 10ms")]).await;
    let client = Client::connect(&proxy).await;
    ready(&proxy, "it").await;

    component.be_ill(true);
    proxy
        .reaches("thalweg_binding_ping_failures_total{binding=\"it\"}", 1)
        .await;

    component.be_ill(false);
    ready(&proxy, "it").await;
    let mut component = component;
    let (answer, ()) = tokio::join!(client.stream("it", &[]), async {
        fine(component.call().await).await;
    });
    assert_eq!(answer.code(), Code::Ok);
}

#[tokio::test]
async fn older_reflection_serves_as_well() {
    let mut component = Traits::unary().reflection_alpha().start().await;
    let proxy = proxy(&[&binding(&component, "")]).await;
    let client = Client::connect(&proxy).await;
    ready(&proxy, "it").await;

    let mut call = client.invoke("it", &[]).await;
    call.outgoing.end();

    assert!(component.call().await.path().ends_with("/Invoke"));
}

#[tokio::test]
async fn component_on_a_socket_is_waited_for() {
    let folder = Folder::empty();
    let socket = folder.path().join("it.sock");
    let yaml = format!("it: {{component: {{socket: {}}}}}", socket.display());
    let proxy = proxy(&[&yaml]).await;
    let client = Client::connect(&proxy).await;
    assert_eq!(client.stream("it", &[]).await.code(), Code::Unavailable);

    let mut component = Traits::streaming().start_on(&socket);
    ready(&proxy, "it").await;

    let (answer, ()) = tokio::join!(client.stream("it", &[]), async {
        let call = component.call().await;
        assert!(call.head.uri.authority().is_some());
        fine(call).await;
    });
    assert_eq!(answer.code(), Code::Ok);
}

// === discovery ===

async fn looking_into(folder: &Folder) -> (TestProxy, Client) {
    let proxy = TestProxy::start(&format!(
        "listeners: [{{name: it, address: \"127.0.0.1:0\"}}]\n\
         component_sockets: {{folder: {}, interval: 10ms}}\n",
        folder.path().display()
    ))
    .await;
    let client = Client::connect(&proxy).await;
    (proxy, client)
}

/// Opens streams until one ends with this code.
async fn until(client: &Client, name: &str, code: Code) {
    within(&format!("{name} says {code:?}"), async {
        while client.stream(name, &[]).await.code() != code {}
    })
    .await;
}

#[tokio::test]
async fn sockets_of_a_folder_come_and_go_as_bindings() {
    let folder = Folder::empty();
    let (proxy, client) = looking_into(&folder).await;
    assert_eq!(client.stream("orders", &[]).await.code(), Code::NotFound);
    std::fs::write(folder.path().join("text.sock"), "no socket").unwrap();
    std::fs::create_dir(folder.path().join("folder.sock")).unwrap();

    let path = folder.path().join("orders.sock");
    let mut component = Traits::streaming().start_on(&path);
    let (headers, init) = component.init().await;
    assert_eq!(headers["x-component-instance"], "orders");
    assert!(init.metadata.unwrap_or_default().properties.is_empty());
    ready(&proxy, "orders").await;
    component.serve(fine);
    assert_eq!(client.stream("orders", &[]).await.code(), Code::Ok);
    for name in ["text", "folder"] {
        assert_eq!(client.stream(name, &[]).await.code(), Code::NotFound);
    }

    std::fs::remove_file(&path).unwrap();
    until(&client, "orders", Code::NotFound).await;

    // And another comes in its place.
    let component = Traits::streaming().start_on(&path);
    component.serve(fine);
    until(&client, "orders", Code::Ok).await;
}

#[tokio::test]
async fn sockets_that_serve_something_else_are_no_bindings() {
    let folder = Folder::empty();
    let store = Traits::state_store().start_on(&folder.path().join("store.sock"));
    let _greeter = Upstream::start_on(&folder.path().join("greeter.sock")).serve(echo);
    let binding = Traits::streaming().start_on(&folder.path().join("zebra.sock"));
    let (proxy, client) = looking_into(&folder).await;

    ready(&proxy, "zebra").await;
    within("the other component was asked", async {
        while store.asked().len() < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;

    for name in ["store", "greeter"] {
        assert_eq!(client.stream(name, &[]).await.code(), Code::NotFound);
    }
    assert!(
        store
            .asked()
            .iter()
            .all(|method| method == "ServerReflectionInfo")
    );
    drop(binding);
}

#[tokio::test]
async fn sockets_with_names_that_no_header_can_carry_are_passed_over() {
    let folder = Folder::empty();
    let strange = ["größe.sock", "two\nlines.sock", ".sock"];
    let _strange = strange.map(|name| Traits::streaming().start_on(&folder.path().join(name)));
    let component = Traits::streaming().start_on(&folder.path().join("zebra.sock"));
    let (proxy, client) = looking_into(&folder).await;

    ready(&proxy, "zebra").await;
    component.serve(fine);

    assert_eq!(client.stream("größe", &[]).await.code(), Code::NotFound);
    assert_eq!(client.stream("zebra", &[]).await.code(), Code::Ok);
    assert!(!proxy.admin("/metrics").await.contains("größe"));
}

#[tokio::test]
async fn binding_of_the_configuration_comes_before_a_socket_of_its_name() {
    let folder = Folder::empty();
    let component = Traits::streaming().start_on(&folder.path().join("echo.sock"));
    let other = Traits::streaming().start_on(&folder.path().join("other.sock"));
    let proxy = TestProxy::start(&format!(
        "listeners: [{{name: it, address: \"127.0.0.1:0\"}}]\n\
         component_sockets: {{folder: {}, interval: 10ms}}\n\
         bindings: {{echo: {{echo: {{}}}}}}\n",
        folder.path().display()
    ))
    .await;
    let client = Client::connect(&proxy).await;
    ready(&proxy, "other").await;

    assert_eq!(client.stream("echo", &[b"hi"]).await.payload(), "hi");
    assert!(component.asked().is_empty());
    drop(other);
}
