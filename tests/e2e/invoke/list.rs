//! The list of bindings.

use tokio::process::Command;

use super::run;
use crate::support::{
    binding,
    child::binary,
    component::{Component, ready},
    proxy::TestProxy,
    upstream::nobody,
};

fn bindings(admin: &str, arguments: &[&str]) -> Command {
    let mut command = binary();
    command
        .arg("bindings")
        .args(arguments)
        .args(["--admin", admin]);
    command
}

#[tokio::test]
async fn bindings_are_listed_as_a_table_and_as_json() {
    let component = Component::start().await;
    let orders = format!(
        "orders: {{component: {{address: \"{}\"}}}}",
        component.address
    );
    let proxy = binding::proxy(&["echo: {echo: {}}", &orders]).await;
    ready(&proxy, "orders").await;
    let operator = proxy.operator();
    let admin = format!("http://{}", operator.0);

    let said = run(bindings(&admin, &[])).await;
    assert_eq!((said.code, &*said.stderr), (Some(0), ""));
    let expected = "\
        NAME    KIND       OPERATIONS\n\
        echo    echo       (any)\n\
        orders  component  create get\n";
    assert_eq!(said.stdout, expected);

    let said = run(bindings(&admin, &["--json"])).await;
    assert_eq!((said.code, &*said.stderr), (Some(0), ""));
    assert_eq!(said.stdout, operator.get("/bindings").await.body);
}

#[tokio::test]
async fn token_is_sent_to_those_who_want_it() {
    let proxy = TestProxy::start_with_admin(
        "{address: \"127.0.0.1:0\", token: sesame}",
        &binding::yaml(&["echo: {echo: {}}"]),
    )
    .await;
    let admin = format!("http://{}", proxy.operator().0);

    for wrong in [&[][..], &["--token", "other"]] {
        let said = run(bindings(&admin, wrong)).await;
        assert_eq!((said.code, &*said.stdout), (Some(77), ""));
        assert!(said.stderr.contains("--token"), "{}", said.stderr);
    }
    assert_eq!(
        run(bindings(&admin, &["--token", "sesame"])).await.code,
        Some(0)
    );
    let mut command = bindings(&admin, &[]);
    command.env("THALWEG_ADMIN_TOKEN", "sesame");
    assert_eq!(run(command).await.code, Some(0));
}

#[tokio::test]
async fn wrong_address_is_told_with_a_hint() {
    let nobody = nobody().await;
    let said = run(bindings(&format!("http://{nobody}"), &[])).await;
    assert_eq!(said.code, Some(69));
    let expected = format!(
        "thalweg: nothing listens on {nobody}: is `thalweg` running?\n\
         --admin says where else to ask\n"
    );
    assert_eq!(said.stderr, expected);

    let proxy = binding::proxy(&["echo: {echo: {}}"]).await;
    let said = run(bindings(&format!("http://{}", proxy.address), &[])).await;
    assert_eq!(said.code, Some(66));
    assert!(
        said.stderr.contains("not that of a listener"),
        "{}",
        said.stderr
    );
}
