//! Every kind of call, as client and upstream see it.

use crate::support::{
    client::Client,
    proxy::Yaml,
    upstream::{Upstream, echo},
};

#[tokio::test]
async fn one_message_comes_back_for_one() {
    let upstream = Upstream::start().await.serve(echo);
    let proxy = Yaml::to(&upstream).start().await;
    let client = Client::connect(&proxy).await;

    let answer = client.unary("/e2e.Echo/Unary", b"hello").await;

    assert_eq!(answer.messages(), ["hello"]);
    assert_eq!(answer.code(), thalweg_proto::status::Code::Ok);
    assert_eq!(answer.reason(), None);
}
